"""The command line: names, help, errors in one line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import cli
from mlx_ane._console import to_json
from mlx_ane.commands import doctor


def test_version_and_help(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == ane.__version__
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for name in cli.names():
        assert f"  {name}" in text
    assert "doctor" in cli.names()


def test_unknown_command(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["docter"])
    assert caught.value.code == 2
    assert "'docter' (choose from" in capsys.readouterr().err


def test_every_command_has_json_and_a_help_line(capsys) -> None:
    for name in cli.names():
        assert cli._command(name).HELP
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_an_error_is_one_line(monkeypatch, capsys) -> None:
    def run(args) -> int:
        raise ValueError("[mlx_ane.doctor] got this, need that.")

    monkeypatch.setattr(doctor, "run", run)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "mlx-ane doctor: [mlx_ane.doctor] got this, need that.\n"
    )


def test_module_entry() -> None:
    done = run_python(
        f"""
        import subprocess
        subprocess.run([{sys.executable!r}, "-m", "mlx_ane", "--version"], check=True)
        """
    )
    assert done.stdout.strip() == ane.__version__


@pytest.mark.parametrize("arguments", [["--version"], ["doctor", "--json"]])
def test_a_closed_pipe_is_silent(arguments: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_ane", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_an_interruption_has_a_status_of_its_own(monkeypatch, capsys) -> None:
    def run(args) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", run)
    assert cli.main(["doctor"]) == 130
    error = capsys.readouterr().err
    assert error == "mlx-ane doctor: interrupted; nothing is saved\n"


def test_json_has_null_for_what_is_not_finite() -> None:
    found = to_json(
        {
            "a": [math.nan, -math.inf, 1.5],
            "b": (np.float32(np.inf), np.int64(3)),
            "c": mx.array([1.0, mx.nan]),
            "d": {"e": None, "f": "NaN"},
        }
    )
    assert json.loads(found, parse_constant=pytest.fail) == {
        "a": [None, None, 1.5],
        "b": [None, 3],
        "c": [1.0, None],
        "d": {"e": None, "f": "NaN"},
    }


def test_commands_write_json_by_the_one_writer() -> None:
    for file in Path(cli.__file__).parent.glob("commands/*.py"):
        assert "json.dumps" not in file.read_text(), file
