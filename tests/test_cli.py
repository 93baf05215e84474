"""The command line: names, help, errors in one line, doctor."""

from __future__ import annotations

import json
import sys

import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext, cli
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


def test_doctor_passes_here(capsys) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["versions"]["mlx_ane"] == ane.__version__
    assert set(found["checks"]) >= {"cpu", "emulated"}
    errors = found["checks"]["emulated"]["relative errors"]
    assert 1e-5 < errors["forward"] <= 2e-3
    assert errors["dx"] <= 1e-5
    assert found["blas"]["name"] == _ext.blas_name()
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "PASS  emulated" in text and "default: auto" in text


def test_doctor_fails_on_a_wrong_product(monkeypatch, capsys) -> None:
    real = doctor.linear
    monkeypatch.setattr(doctor, "linear", lambda *a, **k: 1.01 * real(*a, **k))
    assert cli.main(["doctor"]) == 1
    assert "FAIL  cpu" in capsys.readouterr().out


def test_module_entry() -> None:
    done = run_python(
        f"""
        import subprocess
        subprocess.run([{sys.executable!r}, "-m", "mlx_ane", "--version"], check=True)
        """
    )
    assert done.stdout.strip() == ane.__version__
