"""The Llama-style model of the training step, in MLX; parts of it can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from numpy.typing import NDArray


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """``silu(gate) * up``."""
    return nn.silu(gate) * up


class Layer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(
        self, spec: dict[str, Any], i: int, w: dict[str, NDArray[Any]]
    ) -> None:
        super().__init__()

        def linear(name: str) -> nn.Linear:
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = mx.array(w[f"{i}.{name}"])
            return layer

        for name in ("q", "k", "v", "o", "gate", "up", "down"):
            setattr(self, name, linear(name))
        self.norm1 = nn.RMSNorm(spec["dim"])
        self.norm2 = nn.RMSNorm(spec["dim"])
        self.rope = nn.RoPE(spec["dim"] // spec["heads"])
        self.heads = spec["heads"]


class Model(nn.Module):
    """Tokens to the mean cross-entropy of the next token.

    Args:
        spec (dict): Sizes, as inputs.step_shapes.
        arrays (dict): Weights by name.
        attention, swiglu, losses: Replacements of MLX's functions.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        attention: Callable[..., mx.array] = mx.fast.scaled_dot_product_attention,
        swiglu: Callable[..., mx.array] = swiglu,
        losses: Callable[..., mx.array] = nn.losses.cross_entropy,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(1, 1)
        self.embed.weight = mx.array(arrays["embed"])
        self.norm = nn.RMSNorm(spec["dim"])
        self.layers = [Layer(spec, i, arrays) for i in range(spec["layers"])]
        self._attention, self._swiglu, self._losses = attention, swiglu, losses

    def attend(self, layer: Layer, x: mx.array) -> mx.array:
        """Causal self-attention; x: (S, D), heads: (1, H, S, C)."""
        split = (1, x.shape[0], layer.heads, -1)
        q, k, v = (
            f(x).reshape(split).swapaxes(1, 2) for f in (layer.q, layer.k, layer.v)
        )
        q, k = layer.rope(q), layer.rope(k)
        y = self._attention(q, k, v, scale=q.shape[-1] ** -0.5, mask="causal")
        return layer.o(y.swapaxes(1, 2).reshape(x.shape))

    def __call__(self, tokens: mx.array) -> mx.array:
        """The loss; tokens: (S + 1,)."""
        x = self.embed(tokens[:-1])
        for layer in self.layers:
            x = x + self.attend(layer, layer.norm1(x))
            h = layer.norm2(x)
            x = x + layer.down(self._swiglu(layer.gate(h), layer.up(h)))
        logits = self.embed.as_linear(self.norm(x))
        return self._losses(logits, tokens[1:]).mean()


def train_step(model: Model, optimizer: Any, tokens: mx.array) -> Callable[[], float]:
    """One step of value_and_grad, update and evaluation; returns the loss."""
    loss_and_grad = nn.value_and_grad(model, lambda model, tokens: model(tokens))

    def step() -> float:
        loss, gradients = loss_and_grad(model, tokens)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        return float(loss.item())

    return step
