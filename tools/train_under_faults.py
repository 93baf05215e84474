"""Trains 1,000 steps with 5 % of the emulated engine's calls failing in every way.

    python tools/train_under_faults.py --json benchmarks/train_under_faults.json

The losses must be those of the run without faults within the rounding of fp16, every
fault must be counted once under its cause, and memory must stay flat. Exits with 1
otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from long_run import resident
from mlx import nn

import mlx_ane as ane
from mlx_ane import _ext

RATE = 0.05
SIZES = (64, 128, 96, 64)
ROWS = 48
#: Steps in a row that one kind of fault strikes.
SEGMENT = 25
#: Largest |loss - loss without faults| / the latter: fp16 where it failed, fp32.
TOLERANCE = 2e-3
#: MiB that memory may grow by in the second half: the smallest surface of a program
#: lost at each fault would be several.
FLAT = 1.0


@dataclass(frozen=True)
class Kind:
    """A fault and what becomes of a call that it strikes."""

    fault: str
    #: The cause it is counted under, or None: the call succeeds or is placed.
    cause: str | None
    #: Keys of the fault beside rate and seed.
    keys: str = ""
    #: Share of the strikes' site calls that belong to one device call.
    share: float = 1.0
    #: Strikes programs or surfaces as they are made: caches are emptied each step.
    making: bool = False


KINDS = (
    Kind("evaluate_false", "evaluate_failed"),
    Kind("compile_error", "compile_failed", making=True),
    Kind("writes_nothing", "wrote_nothing"),
    Kind("load_fails", "load_failed", making=True),
    Kind("zeros", "wrong_values"),
    Kind("load_fails_once", "load_failed", making=True),
    Kind("nan", "nonfinite", keys=",share=0.1"),
    Kind("cap_reached", None, making=True),
    Kind("wrong_values", "wrong_values"),
    Kind("out_of_memory", "out_of_memory", share=1 / 3, making=True),
    Kind("first_call_fails", "evaluate_failed", making=True),
    Kind("hang", "hang", making=True),
    Kind("device_gone", "unavailable", making=True),
    Kind("slow", None, keys=",ms=2"),
)


class Residual(nn.Module):
    """A block: two layers beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZES[0], 96), nn.Linear(96, SIZES[-1])

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.down(nn.gelu(self.up(x)))


def layers_of(granularity: str) -> list[nn.Module]:
    if granularity == "block":
        return [Residual() for _ in range(4)]
    layers: list[Any] = []
    for k, n in itertools.pairwise(SIZES):
        layers += [nn.Linear(k, n), nn.gelu]
    return layers[:-1]


def train(
    steps: int, faults: bool, segment: int = SEGMENT, granularity: str = "layer"
) -> dict[str, Any]:
    """Losses, resident bytes and strikes of a run.

    Returns:
        dict: "losses", "rss" as [[step, bytes], ...], "strikes" by fault, and
        "device attempts".
    """
    mx.random.seed(0)
    draw = np.random.default_rng(0)
    model = nn.Sequential(*layers_of(granularity))
    target = mx.array(draw.standard_normal((SIZES[-1], SIZES[0])) / 8, mx.float32)
    report = ane.convert(model, device="emulated", granularity=granularity)
    optimizer = ane.optimizers.AdamW(1e-3)
    step = nn.value_and_grad(
        model, lambda x: mx.mean(mx.square(model(x) - mx.tanh(x @ target.T)))
    )
    strikes = {kind.fault: 0 for kind in KINDS}
    losses, rss = [], []
    ane.clear_cache()
    ane.reset_counters()
    for number in range(steps):
        kind = KINDS[number // segment % len(KINDS)]
        if faults and (kind.making or number % segment == 0):
            ane.clear_cache()
            ane.restore_devices()
        rate = RATE * kind.share
        spec = f"{kind.fault}:rate={rate},seed={number}{kind.keys}" if faults else ""
        with ane.emulated.faults(spec):
            x = mx.array(draw.standard_normal((ROWS, SIZES[0])), mx.float32)
            loss, gradients = step(x)
            optimizer.update(model, gradients)
            mx.eval(loss, model.parameters(), optimizer.state)
            for fault, n in ane.emulated.fault_counts().items():
                strikes[fault] += n
        losses.append(loss.item())
        rss.append([number, resident()] if number % 10 == 0 else rss[-1])
    return {
        "losses": losses,
        "rss": rss[::10],
        "strikes": strikes,
        "placement": report.placement(),
        "counters": ane.counters(),
    }


def problems(run: dict[str, Any], clean: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    counts, steps = run["counters"], len(run["losses"])
    found = []
    for cause in sorted({kind.cause for kind in KINDS if kind.cause}):
        struck = sum(run["strikes"][k.fault] for k in KINDS if k.cause == cause)
        counted = counts.get(f"fallback_{cause}", 0)
        if cause == "nonfinite":
            counted += counts["block_retried"]
        if counted != struck:
            found.append(f"{struck} faults of cause {cause}, {counted} fallbacks")
    calls, kind = 0, "block" if counts["block_calls"] else "linear"
    each = 2 * steps if kind == "block" else steps  # its gradient is a call too
    for path, row in run["placement"].items():
        parts = sum(row["placed"].values()) + sum(row["fallback"].values())
        calls += row["calls"]
        if row["calls"] not in (0, each) or row["on_device"] + parts != row["calls"]:
            found.append(f"{path}: {row} do not add up to {each} calls")
    if calls != counts[f"{kind}_calls"]:
        found.append(f"{calls} calls of layers, {counts[f'{kind}_calls']} in all")
    if counts["adam_skipped"] or counts["adam_steps"] != steps:
        found.append(f"{counts['adam_steps']} optimizer steps of {steps}")
    worst = difference(run, clean)
    if not worst <= TOLERANCE:
        found.append(f"a loss is off by {worst:.1e}")
    deadline = time.monotonic() + 10  # released calls return on threads of their own
    while _ext.abandoned_calls() and time.monotonic() < deadline:
        time.sleep(0.01)
    if _ext.abandoned_calls():
        found.append(f"{_ext.abandoned_calls()} calls still hang")
    return found


def difference(run: dict[str, Any], clean: dict[str, Any]) -> float:
    """Largest relative difference of two runs' losses, step by step."""
    a, b = np.array(run["losses"]), np.array(clean["losses"])
    return float(np.max(np.abs(a - b) / b))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--segment", type=int, default=SEGMENT)
    parser.add_argument(
        "--granularity", choices=("layer", "block"), default="layer", help="of convert"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    mx.disable_compile()
    _ext.set_fallback("allow")
    _ext.set_spot_check(1)  # finite wrong values are seen by nothing else
    _ext.emulated.set_evaluate_bound(100)  # milliseconds until a call hangs
    start = time.perf_counter()
    clean = train(args.steps, faults=False, granularity=args.granularity)
    run = train(args.steps, True, args.segment, args.granularity)
    counts = run["counters"]
    half = run["rss"][len(run["rss"]) // 2 :]
    growth = (half[-1][1] - half[0][1]) / 2**20
    wrong = problems(run, clean)
    if growth > FLAT:
        wrong.append(f"memory grew by {growth:.1f} MiB in the second half")
    struck = sum(run["strikes"].values())
    attempts = counts["device_calls"] + sum(
        n for name, n in counts.items() if name.startswith("fallback_")
    )
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "command": "python tools/train_under_faults.py "
        f"--granularity {args.granularity}",
        "mlx": mx.__version__,
        "steps": args.steps,
        "problems": wrong,
        "seconds": round(time.perf_counter() - start),
        "strikes": run["strikes"],
        "strikes of device calls": round(struck / attempts, 3),
        "losses, first and last": [run["losses"][0], run["losses"][-1]],
        "without faults": [clean["losses"][0], clean["losses"][-1]],
        "largest relative difference": float(f"{difference(run, clean):.2g}"),
        "growth in the second half, MiB": round(growth, 2),
        "resident memory, MiB": [round(b / 2**20, 1) for _, b in run["rss"][::10]],
        "counters": {name: n for name, n in counts.items() if n},
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    print(text)
    if args.json:
        args.json.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
