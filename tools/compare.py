"""Compares training, fine-tuning and generation with plain MLX's, in turns.

    python tools/compare.py training --json benchmarks/training_parity.json
    python examples/train_gpt.py
    python tools/compare.py lora --json benchmarks/lora.json
    python tools/compare.py generation --json benchmarks/generation.json

training: examples/train_gpt.py's GPT, same seed, steps and batches; the held-out loss
    must be within 0.1 % of plain MLX's on device cpu and within 1 % elsewhere. Flags of
    train_gpt.py replace the sizes below.
lora: the demo's GPT by mlx_lm.lora and by `mlx-ane lora`, same flags, data and seed;
    the final validation losses must agree within 0.5 % and, on device cpu, ours make
    four times the tokens a second (on Linux, where MLX's BLAS is slow).
generation: mlx_lm's from a plain and a converted model (--model, or random Llamas of
    two sizes). A token is one row, which our layers place on the BLAS; converted must
    reach 0.9 of plain MLX's speed.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

import mlx_ane as ane

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import corpus
import gpt
import train_gpt

ROOT = Path(__file__).parents[1]

TRAINING_SIZES = [
    *("--hidden-size", "96", "--layers", "3", "--heads", "4", "--kv-heads", "2"),
    *("--intermediate-size", "256", "--length", "64", "--steps", "300"),
]
TRAINING_LIMITS = {"cpu": 1e-3}  # relative; others: 1e-2


def train(device: str, data: corpus.Corpus, flags: list[str]) -> dict[str, float]:
    """Held-out losses before and after the training of a new model."""
    args = train_gpt.parse(flags)
    run = train_gpt.build(train_gpt.config_of(args), args, device)
    before = train_gpt.validate(run.model, data, args)
    train_gpt.train(run, data, args, label=device)
    return {"before": before, "after": train_gpt.validate(run.model, data, args)}


def compare_training(devices: list[str], flags: list[str]) -> dict[str, Any]:
    """Losses in nats per byte of plain MLX ("mlx") and of each device."""
    mx.disable_compile()
    data = corpus.Corpus(corpus.standard_library())
    losses = {device: train(device, data, flags) for device in ("mlx", *devices)}
    plain = losses["mlx"]["after"]
    return {
        "losses, nats per byte": losses,
        "relative difference": {
            device: abs(losses[device]["after"] / plain - 1) for device in devices
        },
    }


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
    texts = corpus.other_text()
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
        raise RuntimeError(f"[compare] {side} failed: {done.stderr[-2000:]}")
    plain = side == "plain MLX"  # whose last line is the result
    found = json.loads(done.stdout.splitlines()[-1] if plain else done.stdout)
    reports = found["train"][1:]  # the first report holds the start
    return {
        "tokens/s": statistics.median(r["tokens_per_second"] for r in reports),
        "train loss": found["train"][-1]["train_loss"],
        "validation loss": found["validation"][-1]["val_loss"],
    }


def compare_lora(model: Path, device: str, iters: int, rounds: int) -> dict[str, Any]:
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


PROMPT = "import os, sys\n" * 8
GENERATION_SIZES = {
    "demo": gpt.Config(),
    "larger": gpt.Config(
        hidden_size=768,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        max_position_embeddings=1024,
    ),
}


def save_random(folder: Path, config: gpt.Config) -> None:
    """A model folder that mlx-lm loads."""
    mx.random.seed(0)
    weights = dict(tree_flatten(gpt.GPT(config).parameters()))
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    corpus.save_tokenizer(folder)


def speed(model: nn.Module, tokenizer: Any, tokens: int) -> tuple[float, float]:
    """Tokens a second of the prompt and of what is generated after it."""
    from mlx_lm import stream_generate

    # Without this, a random model may end its text at once.
    tokenizer = type(tokenizer)(tokenizer._tokenizer, eos_token_ids=[-1])
    *_, last = stream_generate(model, tokenizer, PROMPT, max_tokens=tokens)
    if last.generation_tokens != tokens:
        raise RuntimeError(f"[compare] stopped after {last}")
    return last.prompt_tps, last.generation_tps


def compare_generation(
    folder: Path, device: str, tokens: int, rounds: int
) -> dict[str, Any]:
    """Medians over rounds in which the two models take turns."""
    from mlx_lm import load

    plain, tokenizer = load(str(folder))
    ours, _ = load(str(folder))
    ane.convert(ours, device=device)
    ane.reset_counters()
    models = {"plain MLX": plain, "converted": ours}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            measured = speed(model, tokenizer, tokens)
            if turn:  # the first warms up
                found[name].append(measured)
    medians = {
        name: [round(statistics.median(part), 1) for part in zip(*runs, strict=True)]
        for name, runs in found.items()
    }
    ratios = [
        b[1] / a[1] for a, b in zip(found["plain MLX"], found["converted"], strict=True)
    ]
    counts = ane.counters()
    return {
        "parameters, M": round(
            sum(a.size for _, a in tree_flatten(ours.parameters())) / 1e6, 2
        ),
        "prompt, tokens/s": {name: m[0] for name, m in medians.items()},
        "generation, tokens/s": {name: m[1] for name, m in medians.items()},
        "converted / plain MLX, generation": round(statistics.median(ratios), 3),
        "placements": {k: n for k, n in counts.items() if n and "placed" in k},
    }


def folders(model: Path | None) -> Iterator[tuple[str, Path]]:
    if model is not None:
        yield str(model), model
        return
    for name, config in GENERATION_SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_random(Path(folder), config)
            yield name, Path(folder)


def training(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    flags = [*TRAINING_SIZES, *flags]
    found = compare_training(args.device or ["cpu", "emulated"], flags)
    differences = found["relative difference"]
    passed = all(d <= TRAINING_LIMITS.get(k, 1e-2) for k, d in differences.items())
    return {"flags of train_gpt.py": " ".join(flags), **found, "passed": passed}


def lora(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    model = args.model or ROOT / "build" / "gpt" / "model"
    if not model.exists():
        raise SystemExit(f"{model} is missing; run: python examples/train_gpt.py")
    (device,) = args.device or ["cpu"]
    found = compare_lora(model, device, args.iters, args.rounds or 3)
    fast = found["mlx_ane / plain MLX"] >= 4
    passed = found["relative difference"] <= 5e-3 and (fast or device != "cpu")
    return {"iters": args.iters, **found, "passed": passed}


def generation(args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    mx.disable_compile()  # MLX's C++ compiler at work is not what is timed here
    (device,) = args.device or ["cpu"]
    rounds = args.rounds or 9
    models = {
        name: compare_generation(folder, device, args.tokens, rounds)
        for name, folder in folders(args.model)
    }
    ratios = [m["converted / plain MLX, generation"] for m in models.values()]
    passed = min(ratios) >= 0.9
    return {"tokens": args.tokens, "rounds": rounds, "models": models, "passed": passed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("training", "lora", "generation"))
    parser.add_argument("--model", type=Path, help="a model folder of mlx-lm")
    parser.add_argument("--device", nargs="+", help="several for training")
    parser.add_argument("--iters", type=int, default=30, help="of lora")
    parser.add_argument("--tokens", type=int, default=100, help="of generation")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args, flags = parser.parse_known_args()
    if flags and args.what != "training":
        parser.error(f"unknown arguments: {' '.join(flags)}")
    if len(args.device or []) > 1 and args.what != "training":
        parser.error(f"{args.what} takes one --device")
    compare = {"training": training, "lora": lora, "generation": generation}
    found = compare[args.what](args, flags)
    result = {
        "command": f"python tools/compare.py {' '.join(sys.argv[1:])}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "load at the end": round(os.getloadavg()[0], 1),
        "mlx": mx.__version__,
        **found,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
