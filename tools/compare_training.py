"""Trains examples/train_gpt.py's GPT by plain MLX and by mlx_ane: same loss at the end?

    python tools/compare_training.py --json benchmarks/training_parity.json

Same seed, steps and batches; the held-out loss must be within 0.1 % of plain MLX's on
device cpu and within 1 % elsewhere. The sizes below take minutes in plain MLX on
Linux; flags of train_gpt.py replace them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import train_gpt
from corpus import Corpus, standard_library

SIZES = [
    *("--hidden-size", "96", "--layers", "3", "--heads", "4", "--kv-heads", "2"),
    *("--intermediate-size", "256", "--length", "64", "--steps", "300"),
]
LIMITS = {"cpu": 1e-3}  # relative; others: 1e-2


def train(device: str, data: Corpus, flags: list[str]) -> dict[str, float]:
    """Held-out losses before and after the training of a new model."""
    args = train_gpt.parse(flags)
    run = train_gpt.build(train_gpt.config_of(args), args, device)
    before = train_gpt.validate(run.model, data, args)
    train_gpt.train(run, data, args, label=device)
    return {"before": before, "after": train_gpt.validate(run.model, data, args)}


def compare(devices: list[str], flags: list[str]) -> dict[str, Any]:
    """Losses in nats a byte of plain MLX ("mlx") and of each device."""
    mx.disable_compile()
    data = Corpus(standard_library())
    losses = {device: train(device, data, flags) for device in ("mlx", *devices)}
    plain = losses["mlx"]["after"]
    return {
        "losses, nats a byte": losses,
        "relative difference": {
            device: abs(losses[device]["after"] / plain - 1) for device in devices
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", nargs="+", default=["cpu", "emulated"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args, flags = parser.parse_known_args()
    found = compare(args.device, [*SIZES, *flags])
    differences = found["relative difference"]
    passed = all(d <= LIMITS.get(name, 1e-2) for name, d in differences.items())
    result = {
        "command": f"python tools/compare_training.py {' '.join(flags)}".strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "mlx": mx.__version__,
        "flags of train_gpt.py": " ".join([*SIZES, *flags]),
        **found,
        "passed": passed,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
