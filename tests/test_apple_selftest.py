"""The self-test: how it judges, and what it finds over the doubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_ane import _ext, _selftest

doubles = pytest.mark.skipif(
    not hasattr(_ext, "apple"), reason="built without the Apple route"
)


def variant(**changes: Any) -> dict[str, Any]:
    """A finding about one program variant."""
    return {
        "test": "variant",
        "route": "in_memory",
        "layout": "natural",
        "dialect": "ios18",
        "passed": True,
        "best_seconds": 1e-4,
    } | changes


def depth(k: int, gflops: float, **changes: Any) -> dict[str, Any]:
    """A finding about the throughput at one depth."""
    return {
        "test": "depth",
        "route": "in_memory",
        "k": k,
        "gflops": gflops,
        "passed": True,
    } | changes


def test_the_fastest_right_variant_wins() -> None:
    verdict = _selftest.judge(
        [
            variant(passed=False, best_seconds=1e-6, layout="channels_first"),
            variant(best_seconds=3e-4),
            variant(best_seconds=2e-4, dialect="ios16"),
            depth(672, 900.0),
            depth(1344, 1900.0),
            depth(2688, 5000.0, passed=False),
            depth(5376, 9000.0, route="e5rt"),
        ]
    )
    assert verdict.passed
    assert (verdict.route, verdict.layout) == ("in_memory", "natural")
    assert verdict.dialect == "ios16"
    assert verdict.max_contraction == 1344
    assert "200 us" in verdict.reason


def test_no_right_variant_is_not_usable() -> None:
    verdict = _selftest.judge([variant(passed=False, error="status 0x1d"), depth(1, 1)])
    assert not verdict.passed
    assert verdict.reason == "status 0x1d"
    assert _selftest.judge([]).reason == "no variant gave a right answer"


def test_findings_are_json() -> None:
    nan, inf = float("nan"), float("inf")
    found = _selftest._finding({"test": "variant"}, lambda: {"a": nan, "b": 1.5})
    assert found == {"test": "variant", "passed": True, "a": None, "b": 1.5}
    found = _selftest._finding({}, lambda: {"passed": False, "error": "x", "c": inf})
    assert found == {"passed": False, "error": "x", "c": None}


@pytest.mark.skipif(hasattr(_ext, "apple"), reason="built with the Apple route")
def test_without_the_apple_route() -> None:
    assert _selftest.stored_verdict() is None
    verdict = _selftest.run_in_subprocess()
    assert not verdict.passed
    assert "macOS" in verdict.reason


def run(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """The self-test's JSON from a process of its own."""
    child = subprocess.run(
        [sys.executable, "-m", "mlx_ane._selftest", "--json", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MLX_ANE_CACHE_DIR": str(folder), **environment},
        cwd=Path(_selftest.__file__).parent.parent,
        check=False,
    )
    assert child.stdout, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    assert child.returncode == (0 if result["passed"] else 1)
    return result


@doubles
def test_passes_and_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path, "--timeout", "90", MLX_ANE_EMULATED="numerics=exact")
    assert result["passed"], result["reason"]
    findings = result["findings"]
    variants = [f for f in findings if f["test"] == "variant"]
    assert len(variants) == 4
    assert all(f["relative_error"] <= 2e-3 and f["unwritten"] == 0 for f in variants)
    by_test = {f["test"]: f for f in findings}
    # The accumulator reported for M4: 2^15 and above is infinite.
    assert 30000 < by_test["cliff of sum"]["largest_right"] < 32768
    assert by_test["cliff of sum"]["beyond"] == "inf"
    assert by_test["cliff of product"]["log2_smallest_product"] <= -12
    assert "error" not in by_test["cliff of slice"]
    stored = next(tmp_path.glob("verdicts/*.txt")).read_text()
    assert "passed: yes" in stored and f"route: {result['route']}" in stored


@doubles
def test_the_second_route_stands_in(tmp_path: Path) -> None:
    faults = "compile_error:count=4"
    result = run(tmp_path, MLX_ANE_FAULTS=faults, MLX_ANE_ROUTE="in_memory")
    assert not result["passed"]
    assert "rejected the program" in result["reason"]
    # Every compile of each child fails four times: e5rt's variants as well.
    assert not run(tmp_path, MLX_ANE_FAULTS=faults)["passed"]
    only = run(tmp_path, MLX_ANE_ROUTE="e5rt")
    assert only["passed"] and only["route"] == "e5rt"


@doubles
def test_wrong_answers_do_not_pass(tmp_path: Path) -> None:
    for fault in ("wrong_values", "writes_nothing"):
        result = run(tmp_path, MLX_ANE_FAULTS=fault)
        assert not result["passed"], fault
        assert result["reason"]


@doubles
def test_a_hang_costs_the_bound_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_FAULTS", "hang")
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    verdict = _selftest.run_in_subprocess(timeout=4.0)
    assert not verdict.passed
    assert "took over 2 s" in verdict.reason
    stored = _selftest.stored_verdict()
    assert stored is not None and not stored.passed
    assert stored.reason == verdict.reason


@doubles
def test_a_crash_costs_the_route_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    ran = subprocess.run

    def crash(command: list[str], **options: Any) -> Any:
        if "in_memory" in command:
            command = [sys.executable, "-c", "import os; print('{'); os.abort()"]
        return ran(command, **options)

    monkeypatch.setattr(subprocess, "run", crash)
    verdict = _selftest.run_in_subprocess()
    assert verdict.passed and verdict.route == "e5rt"
    ends = [f for f in verdict.findings if f.get("test") == "process"]
    assert len(ends) == 1 and "did not end well" in ends[0]["error"]
