"""Trains a small GPT on the text of Python's standard library.

    python examples/train_gpt.py                      # on the emulated Neural Engine
    python examples/train_gpt.py --device mlx         # plain MLX, to compare
    python examples/train_gpt.py --resume             # go on after an interruption
    mlx.launch -n 2 examples/train_gpt.py             # data parallel, two processes

Writes to --out a checkpoint, the loss curve and a model folder that mlx-lm loads.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import checkpoint
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import options
import placement
from corpus import Corpus, save_tokenizer, standard_library
from gpt import GPT, Config, loss
from mlx.utils import tree_flatten
from options import count, natural
from tqdm import tqdm

import mlx_ane as ane

DEVICES = ["auto", "ane", "emulated", "cpu", "mlx"]
SETTINGS = ["seed", "steps", "batch_size", "length", "learning_rate"]
VALIDATION_WINDOWS = 64
CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Run:
    """What changes while training; all of it goes into a checkpoint."""

    model: GPT
    optimizer: optim.Optimizer
    losses: list[float]
    report: ane.ConversionReport | None = None

    @property
    def step(self) -> int:
        return len(self.losses)

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        arrays = {
            "model": self.model.parameters(),
            "optimizer": self.optimizer.state,
            "random": mx.random.state[0],
            "losses": mx.array(self.losses, mx.float32),
        }
        checkpoint.save(path, arrays, settings)

    def restore(self, path: Path, settings: dict[str, Any]) -> None:
        arrays, saved = checkpoint.load(path)
        changed = sorted(k for k in settings if settings[k] != saved.get(k))
        if changed:
            raise ValueError(
                f"[train_gpt] {path} was made with another {', '.join(changed)}, "
                "resume with the same settings or name another --out."
            )
        self.model.load_weights(tree_flatten(arrays["model"]))
        self.optimizer.state = arrays["optimizer"]
        high, low = arrays["random"].tolist()
        mx.random.seed(high << 32 | low)  # a key is its seed in two halves
        self.losses = arrays["losses"].tolist()


@dataclass
class Speed:
    """Time of training steps, the first left out: it compiles."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __str__(self) -> str:
        if not self.steps:
            return "not measured"
        return (
            f"{self.tokens / self.seconds:,.0f} tokens/s, "
            f"{self.cpu_seconds / self.steps:.2f} CPU s per step"
        )


def build(config: Config, args: argparse.Namespace, device: str) -> Run:
    """A new model and optimizer: converted, or plain MLX if device is "mlx"."""
    mx.random.seed(args.seed)
    warmup = max(1, args.steps // 20)
    rate = optim.join_schedules(
        [
            optim.linear_schedule(0.0, args.learning_rate, warmup),
            optim.cosine_decay(
                args.learning_rate, args.steps, 0.1 * args.learning_rate
            ),
        ],
        [warmup],
    )
    adamw = {"betas": [0.9, 0.95], "weight_decay": 0.1, "bias_correction": True}
    if device == "mlx":
        return Run(GPT(config), optim.AdamW(rate, **adamw), [])
    attention = partial(ane.fast.scaled_dot_product_attention, device=device)
    model = GPT(config, attention)
    report = ane.convert(model, device=device, granularity=args.granularity)
    return Run(model, ane.optimizers.AdamW(rate, **adamw), [], report)


def make_step(run: Run, group: mx.distributed.Group) -> Callable[[mx.array], mx.array]:
    """Compiles one training step: tokens (B, L + 1) of this rank to the loss."""
    loss_and_grad = nn.value_and_grad(run.model, loss)
    state = [run.model.state, run.optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(tokens: mx.array) -> mx.array:
        value, grad = loss_and_grad(run.model, tokens)
        run.optimizer.update(run.model, nn.average_gradients(grad, group))
        return mx.distributed.all_sum(value, group=group) / group.size()

    def evaluated(tokens: mx.array) -> mx.array:
        value = step(tokens)
        mx.eval(value, state)
        return value

    return evaluated


def validate(model: GPT, data: Corpus, args: argparse.Namespace) -> float:
    """Mean loss in nats per byte over the held-out text."""
    windows = data.validation(VALIDATION_WINDOWS, args.length)
    batches = range(0, VALIDATION_WINDOWS, 8)
    values = [loss(model, windows[i : i + 8]).item() for i in batches]
    return float(np.mean(values))


def train(
    run: Run,
    data: Corpus,
    args: argparse.Namespace,
    on_step: Callable[[Run], None] = lambda run: None,
    label: str = "training",
) -> Speed:
    """Trains up to step args.steps."""
    group = mx.distributed.init()
    step = make_step(run, group)
    speed = Speed()
    first = run.step
    bar = tqdm(
        range(first, args.steps), desc=label, unit="step", disable=group.rank() != 0
    )
    for index in bar:
        # Every rank takes its rows of the same batch.
        tokens = data.batch(index, args.batch_size, args.length, args.seed)
        start, cpu_start = time.perf_counter(), time.process_time()
        run.losses.append(step(tokens[group.rank() :: group.size()]).item())
        if index > first:
            speed.steps += 1
            speed.tokens += args.batch_size * args.length
            speed.seconds += time.perf_counter() - start
            speed.cpu_seconds += time.process_time() - cpu_start
        bar.set_postfix(loss=f"{run.losses[-1]:.3f}")
        on_step(run)
    return speed


def plain_speed(config: Config, data: Corpus, args: argparse.Namespace) -> Speed:
    """The speed of plain MLX on the same batches, for comparison."""
    few = argparse.Namespace(**{**vars(args), "steps": args.plain_steps + 1})
    return train(build(config, few, "mlx"), data, few, label="plain MLX")


def save_model(folder: Path, model: GPT, config: Config) -> None:
    """Writes a model folder as mlx-lm and transformers lay it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2))
    checkpoint.save(folder / "model.safetensors", model.parameters(), {})
    save_tokenizer(folder)


def sample(folder: Path, prompt: str, tokens: int) -> str:
    """Text generated by mlx-lm alone, which knows nothing of mlx_ane."""
    from mlx_lm import generate, load
    from mlx_lm.sample_utils import make_sampler

    model, tokenizer = load(str(folder))
    sampler = make_sampler(temp=0.7)
    text = generate(model, tokenizer, prompt, max_tokens=tokens, sampler=sampler)
    return prompt + text


def plot(path: Path, losses: list[float], before: float, after: float) -> None:
    """Saves the loss curve as PNG, the held-out text at the start and the end."""
    held_out = [(0, before), (len(losses), after)]
    curves = {"training": losses, "held out": held_out}
    ane.plot.losses(curves, path, title="Loss, nats per byte")


def report(run: Run, config: Config, data: Corpus, length: int) -> None:
    """Prints what ran where, and how far from plain MLX the logits are."""
    plain = GPT(config)
    plain.update(run.model.parameters())
    tokens = data.validation(4, length)[:, :-1]  # (4, L)
    logits = run.model(tokens), plain(tokens)
    mx.eval(logits)
    placement.show(run.report, *logits)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--out", type=Path, default=Path("build/gpt"), help="output folder")
    option("--resume", action="store_true", help="go on from the checkpoint in --out")
    option("--device", default="emulated", choices=DEVICES)
    option(
        "--granularity",
        default="layer",
        choices=["layer", "block"],
        help="block: one program per block, and one for its gradient",
    )
    option("--seed", type=natural, default=0)
    option("--steps", type=count, default=300)
    option("--batch-size", type=count, default=8, help="sequences, over all processes")
    option("--length", type=count, default=128, help="tokens of a sequence")
    option("--learning-rate", type=float, default=3e-3)
    option("--hidden-size", type=count, default=192)
    option("--layers", type=count, default=4)
    option("--heads", type=count, default=6)
    option("--kv-heads", type=count, default=2)
    option("--intermediate-size", type=count, default=512)
    option(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=mx.metal.is_available(),
        help="use mx.compile; without Metal it first spends half a minute in the "
        "C++ compiler, more than it saves here",
    )
    option("--save-every", type=count, default=50, help="steps between checkpoints")
    option(
        "--plain-steps", type=natural, default=10, help="of plain MLX, for its speed"
    )
    option("--sample", type=natural, default=200, help="tokens to generate at the end")
    return parser.parse_args(arguments)


def config_of(args: argparse.Namespace) -> Config:
    return Config(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.length,
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if not args.compile:
        mx.disable_compile()
    group = mx.distributed.init()
    main_rank = group.rank() == 0
    if args.batch_size % group.size():
        raise ValueError(
            f"[train_gpt] --batch-size is {args.batch_size}, but it must be a "
            f"multiple of the number of processes, {group.size()}."
        )
    config = config_of(args)
    say = print if main_rank else lambda *_: None
    data = Corpus(standard_library())
    if args.length >= len(data.valid):
        raise ValueError(
            f"[train_gpt] --length is {args.length}, but the held-out text has "
            f"{len(data.valid)} tokens, need less."
        )
    run = build(config, args, args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / CHECKPOINT
    settings = {**asdict(config), **{k: getattr(args, k) for k in SETTINGS}}
    if args.resume and saved.exists():
        run.restore(saved, settings)
        say(f"resumed at step {run.step}")
    elif args.resume:
        say(f"{saved} is not there yet: begins at step 0")

    def on_step(run: Run) -> None:
        due = run.step % args.save_every == 0 or run.step == args.steps
        if due and main_rank:
            run.save(saved, settings)

    size = sum(p.size for _, p in tree_flatten(run.model.parameters()))
    say(f"GPT of {size / 1e6:.2f} M parameters, {len(data.train) / 1e6:.1f} MB of text")
    before = validate(run.model, data, args)
    speed = train(run, data, args, on_step)
    after = validate(run.model, data, args)
    say(f"held-out loss {before:.3f} -> {after:.3f} nats per byte")
    if not main_rank:
        return
    say(f"{args.device}: {speed}")
    if args.plain_steps and args.device != "mlx":
        say(f"plain MLX: {plain_speed(config, data, args)}")
    plot(args.out / "loss.png", run.losses, before, after)
    save_model(args.out / "model", run.model, config)
    say(f"saved {args.out / 'model'} and {args.out / 'loss.png'}")
    if args.sample:
        say(f"mlx-lm generates:\n{sample(args.out / 'model', 'def ', args.sample)}")
    if run.report is not None:
        report(run, config, data, args.length)


def what_is_saved() -> str:
    """After Ctrl-C: the step that --resume goes on from, if any."""
    saved = parse().out / CHECKPOINT
    if not saved.exists():
        return f"no checkpoint yet, {saved} is written every --save-every steps"
    step = len(checkpoint.load(saved)[0]["losses"])
    return f"the same command with --resume goes on from step {step}"


if __name__ == "__main__":
    options.run(main, what_is_saved)
