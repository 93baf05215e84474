"""Devices by name, the `auto` rule and its self-test, facts about a device."""

from __future__ import annotations

import pytest

import mlx_ane as ane
from mlx_ane import _device, _ext, _selftest


@pytest.fixture
def mac(monkeypatch) -> dict:
    """A Mac with an engine whose verdicts the test writes; `runs` counts tests."""
    state = {"verdict": None, "outcome": None, "runs": 0, "layout": None}
    monkeypatch.setattr(_device.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(_device.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(_ext, "unavailable", lambda name: None)
    monkeypatch.setattr(_ext, "set_layout", lambda name: state.update(layout=name))
    monkeypatch.setattr(_selftest, "stored_verdict", lambda: state["verdict"])

    def run() -> _selftest.Verdict:
        state["runs"] += 1
        state["verdict"] = state["outcome"]
        return state["outcome"]

    monkeypatch.setattr(_selftest, "run_in_subprocess", run)
    monkeypatch.setattr(_device, "_resolved", {"cpu": "cpu"})
    return state


PASSED = _selftest.Verdict(True, "in_memory: right", layout="channels_first")
FAILED = _selftest.Verdict(False, "no variant gave a right answer")


def test_auto_is_the_cpu_elsewhere(capfd) -> None:
    if _ext.unavailable("ane") is None:
        pytest.skip("an engine is here")
    assert ane.default_device() == "cpu"
    assert capfd.readouterr().err == ""


def test_auto_runs_the_self_test_once_and_says_so(mac, capfd) -> None:
    mac["outcome"] = PASSED
    assert not ane.is_available()
    assert mac["runs"] == 0  # asking runs nothing
    assert ane.default_device() == "ane"
    assert ane.default_device() == "ane"
    assert mac["runs"] == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "[mlx_ane] self-test of the Neural Engine: in_memory: right; "
        "device 'auto' is 'ane'"
    ]
    assert ane.is_available()
    assert mac["layout"] == "channels_first"


def test_auto_after_a_failed_self_test(mac, capfd) -> None:
    mac["outcome"] = FAILED
    assert ane.default_device() == "cpu"
    assert "no variant gave a right answer; device 'auto' is 'cpu'" in (
        capfd.readouterr().err
    )
    assert not ane.is_available()
    assert mac["layout"] is None


@pytest.mark.parametrize(("verdict", "chosen"), [(PASSED, "ane"), (FAILED, "cpu")])
def test_a_stored_verdict_is_enough(mac, verdict, chosen: str, capfd) -> None:
    mac["verdict"] = verdict
    assert ane.default_device() == chosen
    assert mac["runs"] == 0
    assert capfd.readouterr().err == ""


def test_an_explicit_device_needs_no_verdict(mac) -> None:
    assert _device.resolve("ane", "test") == "ane"
    assert _device.resolve("cpu", "test") == "cpu"
    assert mac["runs"] == 0


def test_default_device_is_set_and_kept(device: str) -> None:
    ane.set_default_device(device)
    assert ane.default_device() == device
    ane.set_default_device("auto")
    assert _device.default_setting() == "auto"


def test_device_info(device: str) -> None:
    info = ane.device_info(device)
    assert info["device"] == device
    assert info["available"] == "yes"
    assert info["blas"] == _ext.blas_name()
    assert ("chip" in info) == (device != "cpu")
    assert ane.device_info()["device"] == ane.default_device()
