"""Fine-tunes the demo's GPT by mlx_lm.lora and by `mlx-ane lora`, in turns.

    python examples/train_gpt.py
    python tools/compare_lora.py --json benchmarks/lora.json

Same flags, data and seed. Exits with 1 unless the final validation losses agree within
0.5 % and, on device cpu on Linux, ours makes four times the tokens a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from corpus import other_text

ROOT = Path(__file__).parents[1]
PIECE = 240  # bytes, each a token: a row of the dataset

# mlx_lm.lora with a callback that keeps its reports.
PLAIN = """
import json, sys, types
import numpy as np
from mlx_lm import lora

class Reports:
    train, validation = [], []
    def on_train_loss_report(self, info): self.train.append(info)
    def on_val_loss_report(self, info): self.validation.append(info)

args = vars(lora.build_parser().parse_args(sys.argv[1:]))
args |= {k: v for k, v in lora.CONFIG_DEFAULTS.items() if args.get(k) is None}
args = types.SimpleNamespace(**args)
np.random.seed(args.seed)
model, tokenizer = lora.load(args.model)
train, valid, _ = lora.load_dataset(args, tokenizer)
lora.train_model(args, model, train, valid, Reports())
print(json.dumps({"train": Reports.train, "validation": Reports.validation}))
"""


def write_data(folder: Path, rows: int) -> None:
    """Pieces of the text that this machine has, every tenth file held out."""
    texts = other_text()
    parts = {"train": [t for i, t in enumerate(texts) if i % 10], "valid": texts[::10]}
    for name, files in parts.items():
        joined = b"\n".join(files).decode()
        pieces = [joined[i : i + PIECE] for i in range(0, len(joined), PIECE)]
        lines = [json.dumps({"text": piece}) for piece in pieces[:rows]]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def fine_tune(side: str, device: str, flags: list[str]) -> dict[str, float]:
    """Runs one side in a process of its own; its speed and its losses."""
    command = [sys.executable, "-m", "mlx_ane", "lora", "--json", "--device", device]
    if side == "plain MLX":
        command = [sys.executable, "-c", PLAIN]
    # OpenBLAS chooses its kernels itself; mx.compile would time a C++ compiler.
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    with tempfile.TemporaryDirectory() as out:  # not ROOT: see `-m`
        done = subprocess.run(
            [*command, *flags, "--adapter-path", out],
            env={**environment, "MLX_DISABLE_COMPILE": "1"},
            cwd=out,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"[compare_lora] {side} failed: {done.stderr[-2000:]}")
    plain = side == "plain MLX"  # whose last line is the result
    found = json.loads(done.stdout.splitlines()[-1] if plain else done.stdout)
    reports = found["train"][1:]  # the first report holds the start
    return {
        "tokens/s": statistics.median(r["tokens_per_second"] for r in reports),
        "train loss": found["train"][-1]["train_loss"],
        "validation loss": found["validation"][-1]["val_loss"],
    }


def compare(model: Path, device: str, iters: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns."""
    with tempfile.TemporaryDirectory() as data:
        write_data(Path(data), 400)
        flags = ["--model", str(model.resolve()), "--data", data, "--train"]
        flags += ["--iters", str(iters), "--batch-size", "4", "--num-layers", "-1"]
        flags += ["--steps-per-report", "5", "--val-batches", "4", "--seed", "0"]
        flags += ["--steps-per-eval", str(iters), "--learning-rate", "1e-4"]
        sides = "plain MLX", "mlx_ane"
        turns = [{s: fine_tune(s, device, flags) for s in sides} for _ in range(rounds)]
    plain, ours = ([turn[side] for turn in turns] for side in sides)
    losses = {side: turns[0][side]["validation loss"] for side in sides}
    speeds = {
        side: round(statistics.median(turn[side]["tokens/s"] for turn in turns), 1)
        for side in sides
    }
    ratios = [b["tokens/s"] / a["tokens/s"] for a, b in zip(plain, ours, strict=True)]
    return {
        "final validation loss": losses,
        "relative difference": abs(losses["mlx_ane"] / losses["plain MLX"] - 1),
        "tokens/s": speeds,
        "mlx_ane / plain MLX": round(statistics.median(ratios), 2),
        "rounds": turns,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "gpt" / "model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--iters", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if not args.model.exists():
        parser.error(f"{args.model} is missing; run: python examples/train_gpt.py")
    found = compare(args.model, args.device, args.iters, args.rounds)
    fast = found["mlx_ane / plain MLX"] >= 4
    passed = found["relative difference"] <= 5e-3 and (fast or args.device != "cpu")
    result = {
        "command": f"python tools/compare_lora.py --device {args.device}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "load at the end": round(os.getloadavg()[0], 1),
        "iters": args.iters,
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
