"""tools/long_run.py: a sample of the long run, and that it would see a leak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import run_python

ROOT = Path(__file__).parents[1]
STEPS = 240

SAMPLE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
import long_run

mx.disable_compile()
device, steps, leak = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
kept = []

def on_step(step):
    kept.append(b"x" * leak)

found = long_run.train(device, steps, samples=24, on_step=on_step)
half = found["rss"][12:]
found["slope"] = long_run.slope(found["rss"])
found["growth"] = half[-1][1] - half[0][1]
print(json.dumps(found))
"""


def sample(device: str, leak: int = 0) -> dict[str, Any]:
    """Figures of a short run that keeps `leak` bytes a step."""
    tools = str(ROOT / "tools")
    done = run_python(SAMPLE, tools, device, str(STEPS), str(leak))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_memory_is_flat(device: str) -> None:
    found = sample(device)
    # The second half: a leak of one tensor a step would be far more.
    assert found["growth"] < 1 << 20
    assert found["mlx"][-1][1] < 1.2 * found["mlx"][12][1]
    assert found["last loss"] < found["first loss"]
    counts = found["counters"]
    assert counts["linear_calls"] == STEPS * 15
    assert not [name for name in counts if name.startswith("fallback")]


def test_a_leak_is_seen() -> None:
    found = sample("cpu", leak=1 << 14)
    assert found["growth"] > 1 << 20
    assert found["slope"] == pytest.approx(1 << 14, rel=0.2)
