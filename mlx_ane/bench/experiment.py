"""The experiment this project grew from: host loops before, BLAS and fused Adam after.

The forward runs on a device; the gradients' GEMMs and Adam run on the host, first by
plain loops, then by the fast kernels.
"""

from __future__ import annotations

import statistics
from typing import Any

from mlx_ane.bench.measure import Sides

#: A model whose plain loops take a second a step, not a minute.
MODEL = {
    "layers": 4,
    "dim": 256,
    "hidden": 688,
    "heads": 4,
    "vocabulary": 4096,
    "S": 128,
}


def experiment(sides: Sides, rounds: int, small: bool, device: str) -> dict[str, Any]:
    """Times of a step before and after.

    Args:
        sides (Sides): The processes.
        rounds (int): Steps of each, interleaved.
        small (bool): A model of a few kilobytes.
        device (str): Where the forward runs.

    Returns:
        dict: "rows" of (name, before, after), "model", "device" and "correct".
    """
    spec = MODEL | ({"layers": 1, "dim": 32, "vocabulary": 64} if small else {})
    ours = sides.get("ours")
    if ours is None:
        return {}
    names = ("before", "after")
    losses = []
    for name in names:
        how = {"how": device, "fused": True, "reference": name == "before"}
        ours.ask(do="prepare", task=name, part="step", spec=spec | how)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(ours.ask(do="run", task=name))
    for name in names:
        losses.append(found[name][-1]["loss"])
        ours.ask(do="forget", task=name)
    before, after = (_figures(found[name]) for name in names)
    return {
        "model": f"{spec['layers']} layers, {spec['dim']} wide, S {spec['S']}",
        "device": device,
        "rows": [(name, before[name], after[name]) for name in before],
        "correct": abs(losses[0] - losses[1]) <= 1e-3 * abs(losses[1]),
    }


def _figures(steps: list[dict[str, float]]) -> dict[str, float]:
    def milliseconds(*kinds: str) -> float:
        return 1e3 * statistics.fmean(
            sum(step.get(f"{kind} seconds", 0.0) for kind in kinds) for step in steps
        )

    def flops(step: dict[str, float]) -> float:
        return sum(v for k, v in step.items() if k.endswith(" flops"))

    def device(step: dict[str, float]) -> float:
        # On device cpu, the forward GEMMs are the device's work.
        kind = "evaluate" if "evaluate seconds" in step else "gemm_forward"
        seconds = step.get(f"{kind} seconds", 0.0)
        return step[f"{kind} flops"] / seconds * 1e-12 if seconds else 0.0

    seconds = [step["seconds"] for step in steps]
    rates = [flops(step) / step["seconds"] * 1e-12 for step in steps]
    return {
        "average ms/step": 1e3 * statistics.fmean(seconds),
        "best ms/step": 1e3 * min(seconds),
        "Adam + embedding ms": milliseconds("adam", "embedding"),
        "embedding ms": milliseconds("embedding"),
        "dW ms": milliseconds("gemm_dw"),
        "dx ms": milliseconds("gemm_dx"),
        "total TFLOPS, sustained": statistics.fmean(rates),
        "total TFLOPS, peak": max(rates),
        "device TFLOPS, sustained": statistics.fmean(device(step) for step in steps),
        "device TFLOPS, peak": max(device(step) for step in steps),
    }
