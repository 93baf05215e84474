"""The command line: names, help, errors in one line."""

from __future__ import annotations

import sys

import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import cli
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
