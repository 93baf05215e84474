"""Fine-tunes a model with LoRA: mlx-lm's trainer, the frozen base on mlx_ane.

    python examples/train_gpt.py && python examples/lora.py
    python examples/lora.py --model mlx-community/Qwen3-0.6B-bf16 --device auto

The new text is what this machine has: C headers, manual pages, licences. The
adapters are mlx-lm's: `mlx_lm.generate --adapter-path` needs no mlx_ane.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import options
import placement
from corpus import other_text
from mlx_lm import generate, load
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, evaluate, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from options import count, natural

import mlx_ane as ane

OWN_MODEL = "build/gpt/model"
Dataset = list[tuple[list[int], int]]
"""(tokens, offset of the first token that counts), as mlx-lm's trainer takes it."""


def dataset(tokenizer: Any, texts: list[bytes], length: int, count: int) -> Dataset:
    """`count` sequences of `length` tokens, taken from the start of each text."""
    found: Dataset = []
    for text in texts:
        tokens = tokenizer.encode(text[:4096].decode(errors="ignore"))
        starts = range(0, len(tokens) - length + 1, length)
        found += [(tokens[s : s + length], 0) for s in starts]
        if len(found) >= count:
            break
    return found[:count]


def prepare(model: nn.Module, args: argparse.Namespace) -> ane.ConversionReport:
    """Freezes the base, adds LoRA layers, moves base and attention to the device."""
    lora = {"rank": args.rank, "scale": args.scale, "dropout": 0.0}
    layers = min(args.layers, len(model.layers))
    model.freeze()
    linear_to_lora_layers(model, layers, lora)
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "model": args.model,
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": lora,
    }
    (args.out / "adapter_config.json").write_text(json.dumps(config, indent=2))
    attention = "mlx" if mx.metal.is_available() else "fused"
    return ane.convert(
        model,
        device=args.device,
        attention=attention,
        granularity=args.granularity,
    )


class Losses(TrainingCallback):
    """Keeps the held-out losses that the trainer reports."""

    def __init__(self) -> None:
        self.held_out: list[float] = []

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.held_out.append(val_info["val_loss"])


def check(
    model: nn.Module, tokenizer: Any, held_out: Dataset, args: argparse.Namespace
) -> tuple[mx.array, mx.array]:
    """Loads the adapters in plain mlx-lm; returns the logits of both models."""
    plain, _ = load(args.model, adapter_path=str(args.out))
    model.eval()
    loss, here = (
        evaluate(m, held_out, args.batch_size, -1, args.length + 1)
        for m in (plain, model)
    )
    print(f"plain mlx-lm with the adapters: held-out loss {loss:.3f} (here {here:.3f})")
    text = generate(
        plain, tokenizer, args.prompt, max_tokens=120, sampler=make_sampler(temp=0.7)
    )
    print(f"and it writes:\n{args.prompt}{text}")
    tokens = mx.array([held_out[0][0]])  # (1, L)
    logits = model(tokens), plain(tokens)
    mx.eval(logits)
    return logits


def start(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The seeds set, and the base model with its tokenizer."""
    if not mx.metal.is_available():
        # MLX would spend half a minute in the C++ compiler, more than it saves.
        mx.disable_compile()
    mx.random.seed(args.seed)
    np.random.seed(args.seed)  # mlx-lm draws its batches from NumPy
    if args.model == OWN_MODEL and not Path(OWN_MODEL).exists():
        raise ValueError(f"{OWN_MODEL} is missing; run examples/train_gpt.py first.")
    model, tokenizer = load(args.model)
    return model, tokenizer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--model", default=OWN_MODEL, help="a model folder or hub id")
    option("--out", type=Path, default=Path("build/adapters"), help="adapter folder")
    option("--device", default="emulated", choices=["auto", "ane", "emulated", "cpu"])
    option(
        "--granularity",
        default="layer",
        choices=["layer", "block"],
        help="block: one program per block, and one for its gradient",
    )
    option("--seed", type=natural, default=0)
    option("--iters", type=count, default=50)
    option("--batch-size", type=count, default=8)
    option("--length", type=count, default=128, help="tokens of a sequence")
    option("--sequences", type=count, default=800, help="to train on")
    option("--layers", type=count, default=16, help="last layers that get adapters")
    option("--rank", type=count, default=8)
    option("--scale", type=float, default=10.0)
    option("--learning-rate", type=float, default=1e-3)
    option("--prompt", default="#define ", help="what to generate from at the end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    model, tokenizer = start(args)
    texts = other_text()
    # Every tenth file is held out, so that no file is on both sides.
    held_out_texts = texts[::10]
    del texts[::10]
    train_set = dataset(tokenizer, texts, args.length, args.sequences)
    held_out = dataset(tokenizer, held_out_texts, args.length, 4 * args.batch_size)
    if min(len(train_set), len(held_out)) < args.batch_size:
        raise ValueError(
            f"[lora] the text of this machine has fewer sequences of {args.length} "
            f"tokens than a batch, need a smaller --length or --batch-size."
        )
    report = prepare(model, args)
    losses = Losses()
    train(
        model=model,
        optimizer=ane.optimizers.AdamW(learning_rate=args.learning_rate),
        train_dataset=train_set,
        val_dataset=held_out,
        args=TrainingArgs(
            batch_size=args.batch_size,
            iters=args.iters,
            val_batches=-1,
            steps_per_report=10,
            steps_per_eval=args.iters,
            steps_per_save=args.iters,
            adapter_file=str(args.out / "adapters.safetensors"),
            max_seq_length=args.length + 1,
        ),
        training_callback=losses,
    )
    print(f"held-out loss {losses.held_out[0]:.3f} -> {losses.held_out[-1]:.3f}")
    placement.show(report, *check(model, tokenizer, held_out, args))


if __name__ == "__main__":
    options.run(main)
