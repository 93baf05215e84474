"""tools/train_under_faults.py: a sample of its run, and what it would see."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_ane as ane
from mlx_ane import _ext

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import train_under_faults as tool  # noqa: E402

pytestmark = pytest.mark.skipif(
    "emulated" not in __import__("conftest").DEVICES, reason="injects faults there"
)


@pytest.fixture(scope="module", params=["layer", "block"])
def runs(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A short run with faults, and the same without."""
    _ext.set_fallback("allow")
    _ext.set_spot_check(1)
    _ext.emulated.set_evaluate_bound(100)
    steps = 10 * len(tool.KINDS)
    try:
        clean = tool.train(steps, faults=False, granularity=request.param)
        yield tool.train(steps, True, 10, request.param), clean
    finally:
        _ext.set_spot_check(0)
        _ext.emulated.set_evaluate_bound(30_000)
        ane.clear_cache()


def test_losses_and_counts_under_every_fault(runs) -> None:
    run, clean = runs
    assert tool.problems(run, clean) == []
    assert all(n > 0 for n in run["strikes"].values())
    assert clean["losses"][-1] < clean["losses"][0] / 2
    counts = clean["counters"]
    assert counts["device_calls"] == counts["linear_calls"] + counts["block_calls"] > 0


def test_what_it_would_see(runs) -> None:
    run, clean = runs

    def seen(change) -> str:
        changed = copy.deepcopy(run)
        change(changed)
        return " ".join(tool.problems(changed, clean))

    row = next(path for path, row in run["placement"].items() if row["calls"])
    kind = "block" if run["counters"]["block_calls"] else "linear"
    assert "cause nonfinite" in seen(
        lambda r: r["counters"].update(fallback_nonfinite=0, block_retried=0)
    )
    assert "add up" in seen(lambda r: r["placement"][row].update(on_device=0))
    assert "in all" in seen(lambda r: r["counters"].update({f"{kind}_calls": 1}))
    assert "optimizer" in seen(lambda r: r["counters"].update(adam_skipped=1))
    assert "off by" in seen(lambda r: r["losses"].append(r["losses"].pop() * 1.01))
    assert "off by" in seen(
        lambda r: r["losses"].append(r["losses"].pop() * float("nan"))
    )
