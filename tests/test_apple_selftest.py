"""The self-test: how it orders, judges, keeps, and what it finds over the doubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_ane import _ext, _probes, _selftest, _trials
from mlx_ane.builder import FORMS
from mlx_ane.compile import right_forms
from mlx_ane.translate import choose

doubles = pytest.mark.skipif(
    not hasattr(_ext, "apple"), reason="built without the Apple route"
)

BOUNDS = _selftest.Bounds(
    start=120, variant=20, slow=20, first=60, fresh=60, probes=60, pause=0.1, size=128
)
ABOUT = {
    "route": "in_memory",
    "staging": "url",
    "layout": "natural",
    "dialect": "ios18",
    "passed": True,
}


def variant(**changes: Any) -> dict[str, Any]:
    """A finding about one program variant."""
    return {"test": "variant", **ABOUT, "compile_seconds": 0.1} | changes


def speed(seconds: float, **changes: Any) -> dict[str, Any]:
    """A finding about its speed."""
    return {
        "test": "speed",
        **ABOUT,
        "net_seconds": seconds,
        "compile_seconds": 0.1,
        "tflops": 1e-3 / seconds,
        "k": 1344,
        "size": 2048,
    } | changes


# -- order ------------------------------------------------------------------------


def test_the_best_attested_variants_come_first() -> None:
    new, old = _selftest.variants("h16g"), _selftest.variants("h13g")
    assert str(new[0]) == "in_memory (url), channels_first, ios18"
    assert str(old[0]) == "in_memory (url), rank3, ios16"
    for order in (new, old):
        assert len(set(order)) == len(order)
        assert {v.route for v in order} == set(_selftest.ROUTES)
        assert {v.staging for v in order if v.route == "in_memory"} == {"url", "id"}
        # Every route has a say within the bound of the first use.
        private = set(_selftest.ROUTES) - {"coreml"}
        assert {v.route for v in order[:10]} == private
        assert {v.layout for v in order} == set(_selftest._LAYOUTS)
        assert order[-1].layout == "single"


@pytest.mark.parametrize("layout", _selftest._LAYOUTS)
def test_operands_are_laid_as_the_program_takes_them(layout: str) -> None:
    way = _trials.Way({"route": "e5rt", "layout": layout, "dialect": "ios18"})
    x, w = _trials.operands(4, 3, 5, 0)
    flat = way.operands(x, w)
    assert sum(a.size for a in flat) == x.size + w.size
    first = flat[0].view(np.float16)
    turned = layout in ("channels_first", "transposed", "weight_first")
    assert np.array_equal(
        first[:12].reshape(3, 4).T if turned else first[:12],
        x.ravel() if not turned else x,
    )


def test_a_wrong_row_at_the_edge_is_an_error() -> None:
    x, w = _trials.operands(64, 32, 96, 0)
    y = (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float16)
    whole, worst = _trials.errors(y, x, w)
    assert whole < _trials.TOLERANCE and worst < _trials.EDGE_TOLERANCE
    for edge in (np.s_[-1, :], np.s_[:, -1]):
        wrong = y.copy()
        wrong[edge] = 0
        assert _trials.errors(wrong, x, w)[1] > _trials.EDGE_TOLERANCE


# -- judgement --------------------------------------------------------------------


def test_the_right_variant_that_costs_least_wins() -> None:
    verdict = _selftest.judge(
        [
            variant(passed=False, layout="transposed", error="wrong"),
            variant(),
            speed(3e-4),
            variant(dialect="ios16"),
            speed(2e-4, dialect="ios16"),
            speed(1e-4, k=672, test="depth", dialect="ios16"),
            speed(5e-5, k=2688, test="depth", dialect="ios16", passed=False),
            speed(1e-5, k=5376, test="depth", route="e5rt", staging=""),
            {"test": "fingerprint", **ABOUT, "dialect": "ios16", "rounding": "unknown"},
        ]
    )
    assert verdict.passed and verdict.dialect == "ios16"
    assert verdict.max_contraction == 672
    assert "ios16: right, 5.00 TFLOP/s at 2048" in verdict.reason


def test_compiles_are_weighed() -> None:
    # H3: 30 s to compile and 1.6 times as slow, or 30 s and a little faster.
    for seconds in (4e-4, 2e-4):
        verdict = _selftest.judge(
            [
                variant(),
                speed(seconds, compile_seconds=30.0),
                variant(layout="rank3"),
                speed(2.5e-4, layout="rank3", compile_seconds=0.5),
            ]
        )
        assert verdict.layout == "rank3"


def test_what_was_not_measured_comes_last() -> None:
    found = [
        variant(compile_seconds=0.01),
        variant(layout="rank3"),
        speed(1.0, layout="rank3"),
    ]
    assert _selftest.judge(found).layout == "rank3"


def test_no_right_variant_is_not_usable() -> None:
    process = {"test": "process", **ABOUT, "passed": False, "error": "no answer"}
    refused = variant(passed=False, dialect="ios16", error="status 0x1d")
    verdict = _selftest.judge([process, refused])
    assert not verdict.passed and verdict.undecided
    # What the engine said is worth more than that something hung.
    assert verdict.reason == (
        "none of 2 variants is right; in_memory (url), natural, ios16: status 0x1d"
    )
    assert not _selftest.judge([refused]).undecided
    assert _selftest.judge([]).reason == "no variant was tried"


def test_findings_are_json() -> None:
    nan, inf = float("nan"), float("inf")
    found = _trials._finding("variant", lambda: {"a": nan, "b": 1.5})
    assert found == {"test": "variant", "passed": True, "a": None, "b": 1.5}
    found = _trials._finding("x", lambda: {"passed": False, "error": "x", "c": inf})
    assert found == {"test": "x", "passed": False, "error": "x", "c": None}


@pytest.mark.skipif(hasattr(_ext, "apple"), reason="built with the Apple route")
def test_without_the_apple_route() -> None:
    assert _selftest.stored_verdict() is None
    assert _selftest.right_forms() is None
    verdict = _selftest.run_in_subprocess()
    assert not verdict.passed
    assert "macOS" in verdict.reason


# -- forms ------------------------------------------------------------------------


def test_forms_are_chosen_by_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**wrong: str) -> dict[str, str]:
        findings = [
            {
                "test": "probe",
                "form": f"{form}={choice}",
                "passed": wrong.get(form) != choice,
            }
            for form, (choices, _) in FORMS.items()
            for choice in choices
        ]
        verdict = _selftest.Verdict(True, "", findings=findings)
        monkeypatch.setattr(_selftest, "stored_verdict", lambda: verdict)
        _selftest.right_forms.cache_clear()
        return choose(right_forms("ane"))

    assert chosen() == {}
    assert chosen(max="reduce_max", rsqrt="pow") == {"max": "tree", "rsqrt": "sqrt"}
    assert right_forms("emulated") is None
    _selftest.right_forms.cache_clear()


def test_every_form_has_a_probe() -> None:
    names = [name for name, _, _ in _probes.probes()]
    assert len(set(names)) == len(names)
    every = {f"{form}={c}" for form, (choices, _) in FORMS.items() for c in choices}
    assert every <= set(names)
    assert names[0] == "max=reduce_max"
    assert {"ports=2", "ports=7", "ports=20"} < set(names)


# -- runs over the doubles --------------------------------------------------------


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Verdicts and compiled programs of one test are not those of another."""
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    return tmp_path


@doubles
def test_the_first_good_variant_ends_the_first_use(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_EMULATED", "numerics=exact")
    verdict = _selftest.run_in_subprocess(bounds=BOUNDS)
    assert verdict.passed, verdict.reason
    tests = [f["test"] for f in verdict.findings]
    assert tests[:4] == ["variant", "fingerprint", "floor", "speed"]
    assert tests.count("variant") == 1 and tests.count("depth") == 3
    by_test = {f["test"]: f for f in verdict.findings}
    # The accumulator reported for M4: 2^15 and above is infinite.
    assert 30000 < by_test["cliff of sum"]["largest_right"] < 32768
    assert by_test["cliff of sum"]["beyond"] == "inf"
    assert by_test["cliff of product"]["log2_smallest_product"] <= -12
    assert verdict.rounding == "rounds like the engine"
    assert "compile seconds" in by_test["variant"]["facts"]
    assert by_test["variant"]["facts"]["ports bound by"] == "name"
    stored = _selftest.stored_verdict()
    assert stored == verdict
    # Another process reads the same.
    code = "from mlx_ane import _device; print(_device.device_info('ane')['rounding'])"
    home = Path(_selftest.__file__).parent.parent
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=home, text=True)
    assert printed == "rounds like the engine\n"


@doubles
def test_e5rt_on_the_cpu_does_not_round_like_the_engine(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test."""
    monkeypatch.setenv("MLX_ANE_EMULATED", "numerics=exact")
    spec = {"job": "variant", "route": "e5rt", "layout": "rank3", "dialect": "ios18"}
    for on_cpu, expected in ((False, "rounds like the engine"), (True, "asked only")):
        found = _selftest._run_child({**spec, "on_cpu": on_cpu, "size": 64}, 60, 120)
        rounding = [f["rounding"] for f in found if f["test"] == "fingerprint"]
        assert rounding == [expected]


@doubles
def test_fresh_tries_all_and_probes_operations(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_ROUTE", "e5rt")
    monkeypatch.setenv("DOUBLES_MACHINE", "refuse=reduce_max|pow")
    verdict = _selftest.run_in_subprocess(fresh=True, bounds=BOUNDS)
    assert verdict.passed, verdict.reason
    variants = [f for f in verdict.findings if f["test"] == "variant"]
    assert len(variants) == 10 and all(f["passed"] for f in variants)
    right = _selftest.right_forms()
    assert right is not None
    assert "max=tree" in right and "max=reduce_max" not in right
    assert {"ports=20", "attention", "attention, gradient", "mlp, gradient"} <= right
    chosen = choose(right_forms("ane"))
    assert chosen["max"] == "tree" and chosen["rsqrt"] == "sqrt"
    refused = next(f for f in verdict.findings if f.get("form") == "max=reduce_max")
    assert "InvalidMILProgram" in refused["error"]


@doubles
def test_wrong_answers_do_not_pass(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_ROUTE", "e5rt")
    bounds = replace(BOUNDS, first=6)  # some variants are enough
    for fault in ("wrong_values", "writes_nothing"):
        monkeypatch.setenv("MLX_ANE_FAULTS", fault)
        verdict = _selftest.run_in_subprocess(bounds=bounds)
        assert not verdict.passed, fault
        assert "wrong values" in verdict.reason
        # If time was up before all were tried: no verdict for good.
        tried = sum(f["test"] == "variant" for f in verdict.findings)
        assert verdict.undecided == (tried < 10)
        found = verdict if tried == 10 else None
        assert _selftest.stored_verdict() == found
        assert _selftest.lately_undecided() == (None if found else verdict)


@doubles
def test_a_hang_is_no_verdict(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_FAULTS", "hang")
    bounds = _selftest.Bounds(start=120, variant=1, first=2.5, pause=0.1, size=64)
    verdict = _selftest.run_in_subprocess(bounds=bounds)
    assert not verdict.passed and verdict.undecided
    assert "no answer within 1 s" in verdict.reason
    # One variant each, on another route after the first hung.
    hung = [f["route"] for f in verdict.findings if f["test"] == "process"]
    assert len(set(hung)) == len(hung)
    assert _selftest.stored_verdict() is None
    assert _selftest.lately_undecided() == verdict
    yesterday = time.time() - 1.1 * 86400
    os.utime(_ext.apple.verdict_file(), (yesterday, yesterday))
    assert _selftest.lately_undecided() is None


@doubles
def test_a_crash_costs_one_variant_only(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = subprocess.Popen

    def crash(command: list[str], **options: Any) -> Any:
        if '"in_memory"' in command[-1] and '"channels_first"' in command[-1]:
            command = [sys.executable, "-c", "import os; print('{'); os.abort()"]
        return opened(command, **options)

    monkeypatch.setattr(subprocess, "Popen", crash)
    verdict = _selftest.run_in_subprocess(bounds=BOUNDS)
    assert verdict.passed and verdict.route != "in_memory"
    ends = [f for f in verdict.findings if f["test"] == "process"]
    assert len(ends) == 1 and "ended with status -6" in ends[0]["error"]
    assert json.loads(json.dumps(asdict(verdict)))["passed"]
