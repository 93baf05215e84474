"""Trains a tiny GPT for 10,000 steps and shows that its memory stays flat.

    python tools/long_run.py --device cpu --json benchmarks/long_run_cpu.json

Lengths change from step to step, as in fine-tuning, so that caches of programs and
of weights are at work too. Exits with 1 if memory grows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

import mlx_ane as ane

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import gpt

LENGTHS = (32, 48, 64, 96)  # tokens; times BATCH these are rows of two buckets
BATCH = 2
SIZES = gpt.Config(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    vocab_size=64,
)
#: Growth a step, fitted to the steps after WARM_UP, that counts as flat. Linux has 2;
#: the rest is for an allocator that returns pages late.
FLAT = 200  # bytes
WARM_UP = 0.2  # of the steps: caches fill, the allocator finds its size


def resident() -> int:
    """Bytes of this process in memory."""
    command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.check_output(command)) * 1024


def train(
    device: str,
    steps: int,
    samples: int = 50,
    on_step: Callable[[int], Any] = lambda step: None,
) -> dict[str, Any]:
    """Trains and measures.

    Returns:
        dict: "rss" and "mlx" as [[step, bytes], ...], "first loss", "last loss" and
        the counters.
    """
    mx.random.seed(0)
    draw = np.random.default_rng(0)
    model = gpt.GPT(SIZES)
    ane.convert(model, device=device)
    ane.reset_counters()
    optimizer = ane.optimizers.AdamW(learning_rate=1e-3)
    loss_and_grad = nn.value_and_grad(model, gpt.loss)
    text = draw.integers(0, SIZES.vocab_size, 4096)
    rss, active, losses = [], [], []
    every = max(1, steps // samples)
    for step in range(1, steps + 1):
        length = int(draw.choice(LENGTHS))
        starts = draw.integers(0, len(text) - length - 1, BATCH)
        tokens = mx.array(np.stack([text[s : s + length + 1] for s in starts]))
        value, gradients = loss_and_grad(model, tokens)
        optimizer.update(model, gradients)
        mx.eval(value, model.parameters(), optimizer.state)
        on_step(step)
        if step % every == 0:
            rss.append([step, resident()])
            active.append([step, mx.get_active_memory()])
            losses.append(value.item())
    return {
        "rss": rss,
        "mlx": active,
        "first loss": losses[0],
        "last loss": losses[-1],
        "counters": {k: n for k, n in ane.counters().items() if n},
    }


def slope(samples: list[list[int]]) -> float:
    """Bytes a step: the least-squares line through what comes after the warm-up."""
    step, size = np.array(samples[int(WARM_UP * len(samples)) :], float).T
    return float(np.polyfit(step, size, 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="auto, ane, emulated or cpu")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    mx.disable_compile()
    found = train(args.device, args.steps)
    fallbacks = sum(n for k, n in found["counters"].items() if "fallback" in k)
    growth = {kind: slope(found[kind]) for kind in ("rss", "mlx")}
    flat = max(growth.values()) < FLAT and fallbacks == 0
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "command": f"python tools/long_run.py --device {args.device}",
        "mlx": mx.__version__,
        "steps": args.steps,
        "growth, bytes per step": {k: round(v, 1) for k, v in growth.items()},
        "flat": flat,
        "losses": [found["first loss"], found["last loss"]],
        "counters": found["counters"],
        # Step and MiB.
        "resident memory": [[s, round(b / 2**20, 2)] for s, b in found["rss"]],
        "memory of MLX": [[s, round(b / 2**20, 2)] for s, b in found["mlx"]],
    }
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0 if flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
