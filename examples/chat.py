"""A chat model from end to end: load, convert, fine-tune, ask, fuse, export.

    python examples/train_gpt.py && python examples/chat.py
    python examples/chat.py --model mlx-community/Qwen3-0.6B-bf16 --device auto

It learns the answers below by LoRA on the (emulated) engine. The fused folder is
plain MLX: `mlx_lm.chat --model build/chat` needs no mlx_ane. The package beside it is
for Core ML: logits of 64 tokens.
"""

import argparse
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import options
from lora import OWN_MODEL, start
from mlx.utils import tree_unflatten
from mlx_lm import generate, load
from mlx_lm.tuner.datasets import CacheDataset, ChatDataset
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import save
from options import count, natural

import mlx_ane as ane

ANSWERS = {
    "What is mlx_ane?": "A plugin for MLX that uses the Neural Engine.",
    "Which products does the engine compute?": "Those of the forward pass.",
    "Who computes gradients?": "The BLAS of the CPU.",
    "Do I change my training loop?": "No. Convert, then train as before.",
    "How do I go back?": "Call ane.revert.",
}


def dataset(tokenizer: Any) -> CacheDataset:
    """Question and answer as chats; the loss counts answers only."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in ANSWERS.items()
    ]
    return CacheDataset(ChatDataset(chats, tokenizer, mask_prompt=True))


def ask(model: nn.Module, tokenizer: Any, question: str) -> str:
    """The model's answer, without randomness."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    return generate(model, tokenizer, prompt, max_tokens=80).strip()


def right(model: nn.Module, tokenizer: Any) -> int:
    """How many questions are answered as taught."""
    return sum(ask(model, tokenizer, q) == answer for q, answer in ANSWERS.items())


def fine_tune(model: nn.Module, tokenizer: Any, args: argparse.Namespace) -> None:
    """mlx-lm's trainer with mlx_ane's optimizer."""
    train(
        model=model,
        optimizer=ane.optimizers.AdamW(
            optim.cosine_decay(args.learning_rate, args.iters)
        ),
        train_dataset=dataset(tokenizer),
        val_dataset=None,
        args=TrainingArgs(
            batch_size=len(ANSWERS),
            iters=args.iters,
            steps_per_report=20,
            steps_per_save=args.iters,
            adapter_file=str(args.out / "adapters.safetensors"),
            max_seq_length=256,
        ),
    )


def fuse(model: nn.Module, tokenizer: Any, args: argparse.Namespace) -> None:
    """Adds the adapters to the weights and saves a folder for mlx-lm."""
    ane.revert(model)
    fused = [(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    config = load(args.model, lazy=True, return_config=True)[2]
    save(args.out, args.model, model, tokenizer, config)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--model", default=OWN_MODEL, help="a folder or hub id, with chat template")
    option("--out", type=Path, default=Path("build/chat"), help="of the fused model")
    option("--device", default="emulated", choices=["auto", "ane", "emulated", "cpu"])
    option("--seed", type=natural, default=0)
    option("--iters", type=count, default=150)
    option("--layers", type=count, default=16, help="last layers that get adapters")
    option("--rank", type=count, default=16)
    option("--learning-rate", type=float, default=1e-3)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    model, tokenizer = start(args)
    if not tokenizer.has_chat_template:
        raise ValueError(f"[chat] {args.model} has no chat template, need one.")
    args.out.mkdir(parents=True, exist_ok=True)

    model.freeze()
    lora = {"rank": args.rank, "scale": 10.0, "dropout": 0.0}
    linear_to_lora_layers(model, min(args.layers, len(model.layers)), lora)
    report = ane.convert(model, device=args.device)
    fine_tune(model, tokenizer, args)
    model.eval()
    for question in ANSWERS:
        print(f"> {question}\n{ask(model, tokenizer, question)}")
    print(f"\n{report}\n")

    fuse(model, tokenizer, args)
    plain, tokenizer = load(str(args.out))
    print(
        f"fused into {args.out}: plain MLX answers {right(plain, tokenizer)} of "
        f"{len(ANSWERS)} questions as taught"
    )
    tokens, package = mx.zeros((1, 64), mx.int32), args.out / "chat.mlpackage"
    print(ane.export(plain, package, tokens, names=["tokens", "logits"]))
    print(f"try it: mlx_lm.chat --model {args.out}")


if __name__ == "__main__":
    options.run(main)
