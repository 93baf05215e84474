"""Trains a small network to read handwritten digits on the (emulated) engine.

    python examples/digits.py
    python examples/digits.py --device cpu

The data is scikit-learn's: 1797 images of 8 x 8 pixels, bundled, no download.
"""

import argparse
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import options
import placement
from options import count, natural
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import mlx_ane as ane

GOAL = 0.97
EPOCHS = 30


def data() -> list[mx.array]:
    """Training images (1347, 64), test images (450, 64), and their labels."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, random_state=0, stratify=labels)
    dtypes = [np.float32, np.float32, np.int32, np.int32]
    return [mx.array(p.astype(d)) for p, d in zip(parts, dtypes, strict=True)]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def batches(x: mx.array, y: mx.array, size: int) -> Iterator[tuple[mx.array, mx.array]]:
    order = mx.random.permutation(x.shape[0])
    for start in range(0, x.shape[0] - size + 1, size):
        rows = order[start : start + size]
        yield x[rows], y[rows]


def train(model: nn.Module, x: mx.array, y: mx.array, epochs: int) -> None:
    def loss(x: mx.array, y: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(x), y, reduction="mean")

    optimizer = ane.optimizers.AdamW(learning_rate=2e-3, weight_decay=0.05)
    loss_and_grad = nn.value_and_grad(model, loss)
    bar = trange(epochs, desc="digits", unit="epoch")
    for _ in bar:
        for images, labels in batches(x, y, 64):
            value, grad = loss_and_grad(images, labels)
            optimizer.update(model, grad)
            mx.eval(model.parameters(), optimizer.state)
        bar.set_postfix(loss=f"{value.item():.4f}")


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="emulated", choices=["auto", "ane", "emulated", "cpu"]
    )
    parser.add_argument("--epochs", type=count, default=EPOCHS)
    parser.add_argument("--seed", type=natural, default=0)
    args = parser.parse_args(arguments)

    mx.random.seed(args.seed)
    x, x_test, y, y_test = data()
    model = network()
    report = ane.convert(model, device=args.device)
    train(model, x, y, args.epochs)

    logits = model(x_test)
    accuracy = (logits.argmax(axis=1) == y_test).astype(mx.float32).mean().item()
    print(f"held-out accuracy {accuracy:.4f} on {len(y_test)} images")
    mx.eval(logits)
    placement.show(report, logits, ane.revert(model)(x_test))
    if accuracy < GOAL:
        raise SystemExit(
            f"digits.py: accuracy {accuracy:.4f} after {args.epochs} epochs is below "
            f"the goal of {GOAL}; the default of {EPOCHS} epochs reaches it"
        )
    return accuracy


if __name__ == "__main__":
    options.run(main)
