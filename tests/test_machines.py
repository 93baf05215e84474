"""The self-test, products and training on every machine that a public report describes.

Right, or a true sentence: never a hang past the bound, never a wrong number, never a
pass without the engine. Over the doubles only.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machines
import pytest

from mlx_ane import _ext, _selftest
from mlx_ane.commands import doctor

pytestmark = pytest.mark.skipif(
    not hasattr(_ext, "apple"), reason="built without the Apple route"
)

#: Reported seconds are this much shorter here.
CLOCK = 0.02
BOUNDS = _selftest.Bounds(
    start=120, variant=6, slow=8, first=40, fresh=60, probes=20, pause=0.4, size=128
)
#: A machine that hangs always is not waited for as long.
HANGING = _selftest.Bounds(
    start=120, variant=2, slow=3, first=6, fresh=8, probes=5, pause=0.1, size=128
)

#: Products and gradients against float64, then 20 steps on the engine and on the CPU.
_USE = """
import json, sys
sys.path[:0] = sys.argv[1:]
from mlx_ane import _checkup
import mlx.core as mx
import mlx.nn as nn
import mlx_ane as ane
failed = [vars(c) for c in _checkup.measure("ane") if c.status != "pass"]

def train(device):
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(40, 72), nn.ReLU(), nn.Linear(72, 8))
    report = ane.convert(model, device=device)
    assert report.rounding() == (None if device == "cpu" else
                                 ane.device_info("ane")["rounding"])
    x = mx.random.normal((96, 40)); y = x[:, :8] * 0.5 + x[:, 8:16]
    adam = ane.optimizers.Adam(learning_rate=1e-2)
    step = nn.value_and_grad(model, lambda m: ((m(x) - y) ** 2).mean())
    losses = []
    for _ in range(20):
        loss, gradients = step(model)
        adam.update(model, gradients)
        mx.eval(loss, model.parameters(), adam.state)
        losses.append(loss.item())
    return losses

before = ane.counters()["device_calls"]
losses = train("ane"), train("cpu")
calls = ane.counters()["device_calls"] - before
print(json.dumps({"failed": failed, "losses": losses, "calls": calls}))
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts and compiled programs of one machine are not those of another."""
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("DOUBLES_CLOCK", str(CLOCK))


def become(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name, value in machines.environment(*names).items():
        monkeypatch.setenv(name, value)


def use() -> dict[str, Any]:
    """What a process of its own gets from the engine by the stored verdict."""
    home = str(Path(_selftest.__file__).parent.parent)
    child = subprocess.run(
        [sys.executable, "-c", _USE, home],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MLX_ANE_FALLBACK": "error"},
        check=False,
    )
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def check_use() -> None:
    found = use()
    assert found["failed"] == []
    assert found["calls"] >= 40  # two layers, twenty steps
    on_engine, on_cpu = found["losses"]
    assert on_engine == pytest.approx(on_cpu, rel=2e-2)
    assert on_engine[-1] < 0.5 * on_engine[0]


@pytest.mark.parametrize("name", machines.MACHINES)
def test_every_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, name)
    if name == "17":
        missing = _ext_unavailable()
        assert machines.UNUSABLE[name] in missing
        return
    bounds = HANGING if name in machines.UNUSABLE else BOUNDS
    start = time.monotonic()
    verdict = _selftest.run_in_subprocess(bounds=bounds)
    assert time.monotonic() - start < bounds.first + bounds.start
    if name in machines.UNUSABLE:
        assert not verdict.passed
        assert machines.UNUSABLE[name] in verdict.reason
        assert verdict.undecided  # hangs, or the time was up
        assert (_selftest.stored_verdict() is None) == verdict.undecided
        return
    assert verdict.passed, verdict.reason
    exact = "exact" in machines.MACHINES[name]
    expected = "rounds like the engine" if exact else "asked only"
    assert verdict.rounding == (expected if name != "12b" else verdict.rounding)
    check_use()
    check_use()  # with what the first process compiled


def _ext_unavailable() -> str:
    """Why a fresh process cannot use the engine."""
    code = "import mlx_ane._ext as e; print(e.unavailable('ane') or '')"
    home = Path(_selftest.__file__).parent.parent
    return subprocess.check_output([sys.executable, "-c", code], cwd=home, text=True)


def test_machines_choose_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deviation is met, not just survived."""
    expected = {
        "1": ("layout", ("rank3", "weight_first")),
        "6": ("layout", ("single",)),
        "7": ("staging", ("id", "")),
        "9": ("route", ("e5rt",)),
        "10b": ("route", ("client",)),
        "13b": ("row_alignment", (128,)),
        "16": ("route", ("e5rt",)),
    }
    for name, (key, values) in expected.items():
        with monkeypatch.context() as patch:
            become(patch, name)
            patch.setenv(
                "MLX_ANE_CACHE_DIR", f"{os.environ['MLX_ANE_CACHE_DIR']}/{name}"
            )
            verdict = _selftest.run_in_subprocess(bounds=BOUNDS)
        assert verdict.passed, (name, verdict.reason)
        assert getattr(verdict, key) in values, (name, verdict.reason)


@pytest.mark.parametrize("name", ["1", "12a", "16"])
def test_doctor_on_a_machine(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    become(monkeypatch, name)
    bounds = HANGING if name in machines.UNUSABLE else BOUNDS
    monkeypatch.setattr(_selftest, "BOUNDS", bounds)
    found = doctor.examine("ane", timeout=60)
    right = [row for row in found["variants"] if row["outcome"] == "right"]
    assert found["passed"] == (name not in machines.UNUSABLE) == bool(right)
    # Every variant that was tried stands there, with the system's own words.
    words = {"1": "InvalidMILProgram", "12a": "not written", "16": "Code=10"}
    errors = [row["error"] for row in found["variants"] if row["outcome"] != "right"]
    if name != "1":  # its first variant is right
        assert errors and any(words[name] in error for error in errors)
    for row in right:
        assert row["floor_seconds"] > 0 and row["tflops"] > 0
        assert row["compile_seconds"] > 0 and row["relative_error"] < 2e-3
    text = doctor._text(found)
    assert "variants of the Neural Engine" in text
    report = json.dumps(doctor.report(found))
    assert str(tmp_path) not in report and str(Path.home()) + "/" not in report
    assert "environment" not in json.loads(report)


PAIRS = [
    pair
    for pair in itertools.combinations(machines.MACHINES, 2)
    if not machines.contradict(*pair) and "17" not in pair
]
#: Pairs that once needed a change, or that mix routes, forms and strides.
CHOSEN = [("1", "7"), ("1", "13b"), ("2", "10b"), ("8", "13a")]


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, marks=[] if pair in CHOSEN else pytest.mark.slow)
        for pair in PAIRS
    ],
    ids="+".join,
)
def test_pairs_of_machines(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, *pair)
    hopeless = any(name in machines.UNUSABLE for name in pair)
    bounds = HANGING if hopeless else BOUNDS
    start = time.monotonic()
    verdict = _selftest.run_in_subprocess(bounds=bounds)
    assert time.monotonic() - start < bounds.first + bounds.start
    if verdict.passed:
        assert not hopeless
        check_use()
    else:
        assert "none of" in verdict.reason and ": " in verdict.reason
    if pair in CHOSEN:
        assert verdict.passed, verdict.reason
