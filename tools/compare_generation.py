"""Times mlx_lm's generation from a model in plain MLX and converted, in turns.

    python tools/compare_generation.py --json benchmarks/generation.json
    python tools/compare_generation.py --model build/gpt/model --device cpu

Without --model: random Llamas of two sizes. A token is one row, which our layers
place on the BLAS; the figure is what the conversion costs or gains there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
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

PROMPT = "import os, sys\n" * 8
SIZES = {
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
        raise RuntimeError(f"[compare_generation] stopped after {last}")
    return last.prompt_tps, last.generation_tps


def compare(folder: Path, device: str, tokens: int, rounds: int) -> dict[str, Any]:
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


def folders(model: str | None) -> Iterator[tuple[str, Path]]:
    if model is not None:
        yield model, Path(model)
        return
    for name, config in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_random(Path(folder), config)
            yield name, Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder of mlx-lm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    mx.disable_compile()  # MLX's C++ compiler at work is not what is timed here
    result = {
        "command": f"python tools/compare_generation.py --device {args.device}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {sys.platform}",
        "load at the end": round(os.getloadavg()[0], 1),
        "mlx": mx.__version__,
        "tokens": args.tokens,
        "rounds": args.rounds,
        "models": {
            name: compare(folder, args.device, args.tokens, args.rounds)
            for name, folder in folders(args.model)
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    ratios = [m["converted / plain MLX, generation"] for m in result["models"].values()]
    return 0 if min(ratios) >= 0.9 else 1


if __name__ == "__main__":
    raise SystemExit(main())
