"""Checks mlx_ane inside graphs of two devices: values, overlap, crossings, training.

With MLX's GPU build (Metal, or CUDA on Linux) the rest of the graph runs on the GPU;
without one, a second CPU stream stands in for it. Run it on such a machine:

    python tools/check_mixed_devices.py [--device cpu] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# A GPU's TF32 products would differ from fp32 ones by more than what is checked.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
from mlx import nn, optimizers

import mlx_ane as ane


def has_gpu() -> bool:
    """Whether this MLX has a GPU backend that answers."""
    try:
        mx.eval(mx.zeros((1,), stream=mx.gpu))
    except (RuntimeError, ValueError):
        return False
    return True


def relative(a: mx.array, b: mx.array) -> float:
    """max |a - b| / max |b|."""
    return float((mx.abs(a - b).max() / mx.abs(b).max()).item())


def milliseconds(run: Callable[[], Any], rounds: int = 7) -> float:
    """Median time of `run`, which must evaluate what it makes."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def gradients(other: Any, device: str) -> dict[str, float]:
    """dx, dW and db through other -> linear -> other, plain and compiled."""
    # x: (64, 96), w: (128, 96), b: (128,)
    x, w, b = (mx.random.normal(s) for s in ((64, 96), (128, 96), (128,)))

    def mixed(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
        h = mx.tanh(x, stream=other)
        y = ane.linear(h, w, b, device=device)
        return mx.sum(mx.square(y, stream=other), stream=other)

    def plain(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
        with mx.stream(mx.cpu):
            y = mx.tanh(x) @ w.T + b
            if device != "cpu":  # the gradient of the exact layer at the device's y
                exact = ane.linear(mx.tanh(x), w, b, device=device)
                y = y + mx.stop_gradient(exact - y)
            return mx.sum(mx.square(y))

    expected = mx.grad(plain, (0, 1, 2))(x, w, b)
    out = {}
    for kind, grad in (
        ("plain", mx.grad(mixed, (0, 1, 2))),
        ("compiled", mx.compile(mx.grad(mixed, (0, 1, 2)))),
    ):
        got = grad(x, w, b)
        for name, g, e in zip(("dx", "dW", "db"), got, expected, strict=True):
            out[f"{name} {kind}"] = relative(g, e)
    return out


def overlap(other: Any, device: str, size: int) -> dict[str, float]:
    """Products on the other side and one linear, apart and in one evaluation."""
    a = mx.random.normal((size, size), stream=other)
    x, w = mx.random.normal((1024, 768)), mx.random.normal((8192, 768))
    mx.eval(a, x, w)

    def theirs() -> mx.array:
        y = a
        for _ in range(12):
            y = mx.matmul(y, a, stream=other) * 1e-3
        return y

    def ours() -> mx.array:
        return ane.linear(x, w, device=device, stream=mx.cpu)

    return {
        "other alone, ms": milliseconds(lambda: mx.eval(theirs())),
        "linear alone, ms": milliseconds(lambda: mx.eval(ours())),
        "both at once, ms": milliseconds(lambda: mx.eval(theirs(), ours())),
    }


def crossing(other: Any, device: str) -> dict[str, float]:
    """Cost of other -> linear -> other for a layer of no work."""
    x, w = mx.ones((1, 8)), mx.ones((8, 8))
    mx.eval(x, w)

    def there_and_back() -> None:
        y = ane.linear(mx.add(x, 1.0, stream=other), w, device=device)
        mx.eval(mx.add(y, 1.0, stream=other))

    return {
        "other alone, us": 1e3
        * milliseconds(lambda: mx.eval(mx.add(x, 1.0, stream=other)), 200),
        "linear alone, us": 1e3
        * milliseconds(lambda: mx.eval(ane.linear(x, w, device=device)), 200),
        "other, linear, other, us": 1e3 * milliseconds(there_and_back, 200),
    }


def train(convert: bool, device: str) -> list[float]:
    """Losses of 60 compiled steps; the middle layer and AdamW ours if `convert`."""
    mx.random.seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 8)
    )
    x, y = mx.random.normal((256, 64)), mx.random.normal((256, 8))
    if convert:
        ane.convert(model, class_predicate=lambda p, m: p == "layers.2", device=device)
    library: Any = ane.optimizers if convert else optimizers
    optimizer = library.AdamW(1e-3)
    optimizer.init(model.trainable_parameters())
    value_and_grad = nn.value_and_grad(
        model, lambda m, x, y: nn.losses.mse_loss(m(x), y)
    )
    state = [model.state, optimizer.state]

    def step(x: mx.array, y: mx.array) -> mx.array:
        loss, grads = value_and_grad(model, x, y)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    losses = []
    for _ in range(60):
        loss = compiled(x, y)
        mx.eval(state, loss)
        losses.append(loss.item())
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="device of the ANE layers")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()

    gpu = has_gpu()
    # A second CPU stream stands in for a GPU that is not there.
    other: Any = mx.gpu if gpu else mx.new_stream(mx.cpu)
    mx.set_default_device(mx.gpu if gpu else mx.cpu)
    ours, plain = train(True, args.device), train(False, args.device)
    figures = {
        "other side": "gpu" if gpu else "a second CPU stream",
        "mlx": mx.__version__,
        "gradients, max relative error": gradients(other, args.device),
        "overlap": overlap(other, args.device, 8192 if gpu else 192),
        "crossing": crossing(other, args.device),
        "training, max relative difference of 60 losses": max(
            abs(a - b) / b for a, b in zip(ours, plain, strict=True)
        ),
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)
    errors = figures["gradients, max relative error"].values()
    tolerance = 1e-4 if args.device == "cpu" else 1e-2
    drift = figures["training, max relative difference of 60 losses"]
    passed = max(errors) < 1e-4 and drift < tolerance
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
