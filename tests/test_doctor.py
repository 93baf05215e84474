"""mlx-ane doctor: what it finds passes or fails for the right reason, in bounds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import ENGINES

import mlx_ane as ane
from mlx_ane import _checkup, _device, _ext, _selftest, cli
from mlx_ane.commands import doctor as command

doubles = pytest.mark.skipif(
    not hasattr(_ext, "apple"), reason="built without the Apple route"
)
plain_linux = pytest.mark.skipif(
    hasattr(_ext, "apple"), reason="shows what is said without the Apple route"
)

#: A self-test of small products that waits no longer than it must.
SHORT = _selftest.Bounds(start=120, variant=3, first=20, pause=0.1, size=128)

#: Faults that strike every call, and the cause that must be named.
CAUSES = {
    "compile_error": "compile_failed",
    "load_fails": "load_failed",
    "cap_reached": "cap_reached",
    "out_of_memory": "out_of_memory",
    "out_of_memory:site=load": "out_of_memory",
    "evaluate_false": "evaluate_failed",
    "writes_nothing": "wrote_nothing",
    "zeros": "wrong_values",
    "nan": "nonfinite",
    "nan:share=0.01": "nonfinite",
    "wrong_values": "wrong_values",
    "wrong_values:share=0.01": "wrong_values",
    "device_gone": "unavailable",
    "device_gone:site=surface": "unavailable",
}
#: Apple's errors tell less.
APPLES_CAUSES = {
    "device_gone": "evaluate_failed",
    "device_gone:site=surface": "out_of_memory",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts and compiled programs of one test are not those of another."""
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("MLX_ANE_DEVICE", raising=False)
    monkeypatch.setattr(_selftest, "BOUNDS", SHORT)
    ane.clear_cache()


def doctor(capsys: Any, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Status, findings and what was written to stderr."""
    status = cli.main(["doctor", "--json", *arguments])
    printed = capsys.readouterr()

    def bare(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return status, json.loads(printed.out, parse_constant=bare), printed.err


def statuses(checks: list[Any]) -> dict[str, str]:
    """Status of each check by its name."""
    rows = [c if isinstance(c, dict) else vars(c) for c in checks]
    return {row["name"]: row["status"] for row in rows}


# -- the checks of a device -------------------------------------------------------


def test_every_check_passes(device: str) -> None:
    _ext.set_min_rows(10_000)  # as a placement measured here may say
    checks = {check.name: check for check in _checkup.measure(device)}
    names = ["product", "gradient of x", "gradient of w", "gradient of b", "Adam step"]
    assert set(checks) == {*names, "Adam" if device == "cpu" else "device calls"}
    assert all(check.status == "pass" for check in checks.values()), checks
    for name in names[1:]:
        assert 0 < checks[name].value <= 1e-5
    if device != "cpu":
        assert 1e-5 < checks["product"].value <= 2e-3  # fp16, not the BLAS
        assert checks["device calls"].value == 1


@pytest.mark.parametrize("fault", CAUSES)
def test_a_fault_of_every_call_is_named(engine: str, fault: str) -> None:
    with ane.emulated.faults(fault):
        checks = list(_checkup.measure(engine))
    failed = [check for check in checks if check.status == "fail"]
    where = "device calls" if fault == "cap_reached" else "product"
    assert where in {check.name for check in failed}
    cause = CAUSES[fault]
    if engine == "ane":
        cause = APPLES_CAUSES.get(fault, cause)
    assert any(cause in check.detail for check in failed), failed
    # Gradients and Adam are the host's: they are checked all the same.
    found = statuses(checks)
    assert found["gradient of w"] == found["Adam step"] == "pass"


def test_wrong_gradients_and_steps_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    real, real_adam = _checkup.linear, _checkup.optimizers.Adam

    def linear(x: mx.array, w: mx.array, b: mx.array, device: str) -> mx.array:
        """y and dx are right; dw and db are not."""
        wrong = mx.stop_gradient(w) + (w - mx.stop_gradient(w)) * 1.01
        return real(x, wrong, mx.stop_gradient(b), device=device)

    monkeypatch.setattr(_checkup, "linear", linear)
    found = statuses(list(_checkup.measure("cpu")))
    assert [name for name in found if found[name] == "fail"] == [
        "gradient of w",
        "gradient of b",
    ]
    monkeypatch.setattr(_checkup, "linear", lambda *a, **k: 1.01 * real(*a, **k))
    found = statuses(list(_checkup.measure("cpu")))
    passed = [name for name in found if found[name] == "pass"]
    assert passed == ["Adam step", "Adam"]
    monkeypatch.setattr(_checkup, "linear", real)
    monkeypatch.setattr(
        _checkup.optimizers,
        "Adam",
        lambda learning_rate, eps: real_adam(
            learning_rate=1.01 * learning_rate, eps=eps
        ),
    )
    found = statuses(list(_checkup.measure("cpu")))
    assert [name for name in found if found[name] == "fail"] == ["Adam step"]


def test_swapped_operands_would_not_pass() -> None:
    assert len({_checkup.S, _checkup.K, _checkup.N}) == 3


def test_a_crash_fails_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = _checkup._CHILD.replace("_checkup.main", "import os; os.abort(); print")
    monkeypatch.setattr(_checkup, "_CHILD", crash)
    checks, facts = _checkup.examine("cpu", timeout=60)
    assert statuses(checks) == {"process": "fail"} and facts == {}
    assert "status -6" in checks[0].detail


def test_a_failed_start_says_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _checkup._CHILD.replace("sys.argv[2]", "'tpu'")
    monkeypatch.setattr(_checkup, "_CHILD", broken)
    checks, _ = _checkup.examine("cpu", timeout=60)
    assert "ValueError: [mlx_ane.device_info] device is 'tpu'" in checks[0].detail


# -- the command ------------------------------------------------------------------


def test_the_command_passes_here(capsys: Any) -> None:
    status, found, err = doctor(capsys, "--device", "auto")
    assert (status, found["passed"], found["failure"], err) == (0, True, None, "")
    assert found["versions"]["mlx_ane"] == ane.__version__
    assert found["blas"] == {"name": _ext.blas_name(), "threads": _ext.blas_threads()}
    assert found["device"]["setting"] == "auto"
    assert found["device"]["chosen_by"] == "--device"
    assert found["device"]["resolved"] == _device.auto_choice()[0]
    (auto,) = [c for c in found["checks"] if c["name"] == "auto"]
    assert auto["value"] == found["device"]["resolved"] and auto["detail"]
    tested = {c["device"] for c in found["checks"] if c["name"] == "product"}
    assert tested == {"cpu", "emulated"} | ({"ane"} & set(found["devices"]) & tested)


def test_json_has_real_types(capsys: Any) -> None:
    found = doctor(capsys)[1]
    for check in found["checks"]:
        assert list(check) == ["device", "name", "status", "value", "detail"]
        assert check["status"] in ("pass", "fail", "skip")
        if check["name"] == "product" and check["status"] == "pass":
            assert isinstance(check["value"], float)
    assert found["devices"]["cpu"]["available"] is True
    assert isinstance(found["cache"]["exists"], bool)
    assert isinstance(found["cache"]["writable"], bool)
    assert isinstance(found["blas"]["threads"], int)
    facts = {"hasANE": "yes", "numANECores": "16", "os_build": "23E214", "model": ""}
    assert command._facts({**facts, "mlx": "0.32.4", "selftest_route": "x"}) == {
        "hasANE": True,
        "numANECores": 16,
        "os_build": "23E214",  # not 23e214
        "model": None,
    }
    assert '"yes"' not in json.dumps(found) and '"no"' not in json.dumps(found)


@pytest.mark.parametrize("by", ["MLX_ANE_FAULTS", "faults()"])
def test_it_fails_when_every_engine_call_fails(
    by: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "MLX_ANE_FAULTS":
        monkeypatch.setenv("MLX_ANE_FAULTS", "evaluate_false")
        status, found, err = doctor(capsys, "--device", "emulated")
    else:
        with ane.emulated.faults("evaluate_false"):
            status, found, err = doctor(capsys, "--device", "emulated")
    assert status == 1 and found["passed"] is False
    assert found["failure"].startswith("[mlx_ane.doctor] device 'emulated' failed")
    assert err == f"mlx-ane doctor: {found['failure']}\n"
    assert "evaluate_failed" in err
    assert "MLX_ANE_FALLBACK" not in err  # it would hide what doctor looks for
    by_device = [c["status"] for c in found["checks"] if c["device"] == "cpu"]
    assert set(by_device) == {"pass"}


def test_the_device_of_the_user_decides(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_FAULTS", "nan")
    status, found, err = doctor(capsys, "--device", "cpu")
    assert (status, err) == (0, "")
    failed = {c["device"] for c in found["checks"] if c["status"] == "fail"}
    assert "emulated" in failed and "cpu" not in failed
    assert cli.main(["doctor"]) == 1  # without a choice, all that is tested counts
    printed = capsys.readouterr()
    assert "FAIL  emulated: product" in printed.out
    assert "PASS  cpu: product" in printed.out
    assert "nonfinite" in printed.err


@plain_linux
def test_the_engine_where_there_is_none(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_device, "_default", "ane")
    monkeypatch.setenv("MLX_ANE_DEVICE", "ane")
    status, found, err = doctor(capsys)
    assert status == 1 and found["device"]["resolved"] == "ane"
    assert found["devices"]["ane"]["available"] is False
    assert err == (
        "mlx-ane doctor: [mlx_ane.doctor] device 'ane' failed its check of "
        "availability (MLX_ANE_DEVICE is 'ane'): the Neural Engine needs macOS on "
        "Apple silicon; use 'cpu' or 'emulated'.\n"
    )
    assert found["self_test"] is None


@pytest.mark.parametrize("site", ["surface", "load", "evaluate"])
def test_a_hang_costs_the_bound_only(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_FAULTS", f"hang:site={site}")
    start = time.monotonic()
    checks, facts = _checkup.examine("emulated", timeout=5)
    assert time.monotonic() - start < 60  # it would wait for ever
    assert facts["device"] == "emulated"
    assert statuses(checks) == {"process": "fail"}
    assert "hang: no answer within 5 s" in checks[0].detail


def test_the_callers_settings_stay(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLX_ANE_TIMELINE", "timeline.json")
    monkeypatch.chdir(os.environ["MLX_ANE_CACHE_DIR"])
    _ext.set_fallback("allow")
    ane.set_default_device("cpu")
    x, w = mx.ones((64, 96)), mx.ones((32, 96))
    mx.eval(ane.linear(x, w))
    counts, random = ane.counters(), mx.random.state[0].tolist()
    assert doctor(capsys)[1]["device"]["setting"] == "cpu"
    assert ane.counters() == counts and ane.default_device() == "cpu"
    assert mx.random.state[0].tolist() == random
    with ane.emulated.faults("evaluate_false"):  # "allow": no error
        y = ane.linear(x, w, device="emulated")
        assert np.array_equal(np.array(y), np.full((64, 32), 96.0))
    assert not Path("timeline.json").exists()


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon"])
def test_a_wrong_bound_is_wrong_usage(timeout: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", "--timeout", timeout])
    assert caught.value.code == 2
    assert "--timeout" in capsys.readouterr().err


# -- the self-test, over the doubles ----------------------------------------------


@doubles
def test_the_self_test_runs_once_and_is_shown_with_its_age(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runs = _selftest.run_in_subprocess, []

    def counted(fresh: bool) -> _selftest.Verdict:
        runs.append(1)
        return run(bounds=SHORT)

    monkeypatch.setattr(_selftest, "run_in_subprocess", counted)
    status, found, _ = doctor(capsys, "--device", "ane")
    assert status == 0 and len(runs) == 1
    assert found["self_test"]["passed"] is True
    assert found["self_test"]["age_seconds"] == 0
    assert isinstance(found["self_test"]["max_contraction"], int)
    assert len(found["self_test"]["findings"]) > 4
    calls = [c for c in found["checks"] if c["name"] == "device calls"]
    assert {c["device"] for c in calls} == {"ane", "emulated"}
    verdict = Path(_ext.apple.verdict_file())
    two_days_ago = time.time() - 2.5 * 86400
    os.utime(verdict, (two_days_ago, two_days_ago))
    assert cli.main(["doctor", "--device", "ane"]) == 0
    assert "stored 2 days ago; --fresh runs it again" in capsys.readouterr().out
    assert len(runs) == 1
    status, found, _ = doctor(capsys, "--device", "ane", "--fresh")
    assert len(runs) == 2 and found["self_test"]["age_seconds"] == 0


@doubles
@pytest.mark.parametrize("fault", ["evaluate_false", "zeros", "hang"])
def test_an_engine_that_fails_every_call(
    fault: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_FAULTS", fault)
    monkeypatch.setattr(_selftest, "BOUNDS", SHORT)
    monkeypatch.setenv("MLX_ANE_ROUTE", "e5rt")
    status, found, err = doctor(capsys, "--device", "ane", "--timeout", "6")
    assert status == 1 and "device 'ane' failed" in err
    assert found["self_test"]["passed"] is False
    failed = [c["name"] for c in found["checks"] if c["status"] == "fail"]
    assert "self-test" in failed and {"product", "process"} & set(failed)
    # Not chosen, it is not tried: the stored verdict says why.
    status, found, _ = doctor(capsys, "--device", "cpu", "--timeout", "6")
    skipped = [c for c in found["checks"] if c["status"] == "skip"]
    assert status == 0 and [c["device"] for c in skipped] == ["ane"]
    assert "no self-test passed" in skipped[0]["detail"]
    assert ENGINES
