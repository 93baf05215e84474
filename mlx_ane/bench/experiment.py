"""A whole training step of a small model: plain MLX on the CPU before, mlx_ane after.

After, the forward runs on a device; the gradients' GEMMs, attention, SwiGLU, the loss
and Adam are mlx_ane's on the CPU. Both sides time the embedding, which is MLX's, alone.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from mlx_ane.bench.measure import Sides

#: A model of which MLX, too, makes a step within seconds.
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
        dict: "rows" of (name, before, after), "model", "device" and "correct": whether
        the losses of the first step agree. Empty if a side is absent.
    """
    spec = MODEL | ({"layers": 1, "dim": 32, "vocabulary": 64} if small else {})
    names = {"before": "mlx", "after": "ours"}
    tasks = {name: sides.get(side) for name, side in names.items()}
    opened = {name: side for name, side in tasks.items() if side is not None}
    if len(opened) < len(names):
        return {}
    losses = {}
    for name, side in opened.items():
        how = {"how": device, "fused": True} if name == "after" else {}
        request = {"do": "prepare", "task": name, "part": "step", "spec": spec | how}
        losses[name] = float(np.load(side.ask(**request)["result"])[0])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(opened[name].ask(do="run", task=name))
    for name, side in opened.items():
        side.ask(do="forget", task=name)
    before, after = (_figures(found[name]) for name in names)
    error = abs(losses["before"] - losses["after"])
    return {
        "model": f"{spec['layers']} layers, {spec['dim']} wide, S {spec['S']}",
        "device": device,
        "rows": [(name, before[name], after[name]) for name in before],
        "correct": error <= 1e-3 * abs(losses["before"]),
    }


def _figures(steps: list[dict[str, float]]) -> dict[str, float]:
    """What both sides can time."""
    seconds = [step["seconds"] for step in steps]
    embedding = [step["embedding seconds"] for step in steps]
    return {
        "average ms/step": 1e3 * statistics.fmean(seconds),
        "best ms/step": 1e3 * min(seconds),
        "embedding ms": 1e3 * statistics.fmean(embedding),
    }
