"""MLX's side of the benchmark: its own CPU ops; with MKL preloaded, also that."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx import optimizers
from numpy.typing import NDArray

from .inputs import (
    BETAS,
    EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    adam_inputs,
    embedding_inputs,
    embedding_sample,
    gemm_inputs,
    gemm_sample,
    sample,
    step_inputs,
)
from .model import Model, train_step
from .timing import Timed, WithParts


def info() -> dict[str, str]:
    """Version and device."""
    version = importlib.metadata.version("mlx")
    return {"mlx": f"{version} on {mx.default_device()}"}


def task(part: str, spec: dict[str, Any]) -> Timed:
    """The task of a part."""
    mx.set_default_device(mx.cpu)
    parts: dict[str, Callable[[dict[str, Any]], Timed]] = {
        "adam": lambda spec: adam(spec, optimizers.AdamW),
        "embedding": lambda spec: embedding(spec, nn.Embedding),
        "gemm": _gemm,
        "step": _step,
    }
    return parts[part](spec)


class Tensors(nn.Module):
    """Parameters alone, for optimizer.update."""

    def __init__(self, tensors: list[dict[str, NDArray[Any]]]) -> None:
        super().__init__()
        self.w = [mx.array(t["p"]) for t in tensors]


def adam(spec: dict[str, Any], optimizer_class: Any) -> Timed:
    """optimizer.update(model, gradients) and its evaluation."""
    tensors = adam_inputs(spec)
    model = Tensors(tensors)
    gradients = {"w": [mx.array(t["g"]) for t in tensors]}
    optimizer = optimizer_class(LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    optimizer.init(model.parameters())
    for state, t in zip(optimizer.state["w"], tensors, strict=True):
        state["m"], state["v"] = mx.array(t["m"]), mx.array(t["v"])
    mx.eval(model, gradients, optimizer.state)
    del tensors

    def update() -> None:
        optimizer.update(model, gradients)

    states = [model.state, optimizer.state]
    if spec.get("compiled"):
        update = mx.compile(update, inputs=states, outputs=states)

    def step() -> None:
        update()
        mx.eval(model.parameters(), optimizer.state)

    def first() -> NDArray[Any]:
        step()
        return np.concatenate([sample(np.array(p)) for p in model.w])

    return Timed(step, first)


def embedding(spec: dict[str, Any], layer_class: Any, least: float = 0.02) -> Timed:
    """The lookup of tokens and the gradient of the table."""
    arrays = {k: mx.array(v) for k, v in embedding_inputs(spec).items()}
    w, tokens, dy = arrays["w"], arrays["tokens"], arrays["dy"]
    layer = layer_class(1, 1)
    mx.eval(w, tokens, dy)

    def lookup(w: mx.array) -> mx.array:
        layer.weight = w
        y: mx.array = layer(tokens)
        return y

    def run() -> tuple[mx.array, mx.array]:
        (y,), (dw,) = mx.vjp(lookup, [w], [dy])
        mx.eval(y, dw)
        layer.weight = w  # not a tracer that keeps a graph alive
        return y, dw

    def first() -> NDArray[Any]:
        return embedding_sample(spec, *(np.array(x) for x in run()))

    return Timed(run, first, least)


def _gemm(spec: dict[str, Any]) -> Timed:
    dtype = getattr(mx, spec.get("dtype", "float32"))
    arrays = {k: mx.array(v).astype(dtype) for k, v in gemm_inputs(spec).items()}
    left = arrays["dy"] if spec["role"] == "dx" else arrays["dy"].T
    right = arrays["w"] if spec["role"] == "dx" else arrays["x"]

    def product() -> NDArray[Any]:
        return gemm_sample(np.array((left @ right).astype(mx.float32)))

    return Timed(lambda: mx.eval(left @ right), product)


def dispatch(spec: dict[str, Any], product: Any) -> Timed:
    """`chain` products of (1, 8) and (8, 8), compiled if more than one."""
    x, w = mx.ones((1, 8)), mx.full((8, 8), 0.125)

    def once(x: mx.array) -> mx.array:
        for _ in range(spec["chain"]):
            x = product(x, w)
        return x

    run = mx.compile(once) if spec["chain"] > 1 else once
    return Timed(lambda: mx.eval(run(x)), lambda: np.array(run(x)))


def _step(spec: dict[str, Any]) -> Timed:
    arrays = step_inputs(spec)
    model = Model(spec, arrays)
    if spec.get("loss_only"):
        tokens = mx.array(arrays["tokens"])
        return Timed(lambda: mx.eval(model(tokens)), lambda: np.array([model(tokens)]))
    optimizer = optimizers.AdamW(LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    step = train_step(model, optimizer, mx.array(arrays["tokens"]))
    parts = {"embedding": embedding(spec, nn.Embedding, least=0.0)}
    return WithParts(step, lambda: np.array([step()]), parts)
