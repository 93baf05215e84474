"""Blocks that the tests of capture and translation share: (module, call, data)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

HIDDEN = 64


def llama(**changes: Any) -> nn.Module:
    """The first layer of a tiny Llama of grouped heads."""
    from mlx_lm.models.llama import Model, ModelArgs

    sizes = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32,
    }
    return Model(ModelArgs(**(sizes | changes))).layers[0]


class Attention(nn.Module):
    """Self-attention of four heads, written out with mx.fast."""

    def __init__(self, mask: str | None) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)
        self.mask = mask

    def __call__(self, x: mx.array) -> mx.array:
        b, s, d = x.shape  # x: (B, S, D)
        q, k, v = (
            part.reshape(b, s, 4, d // 4).transpose(0, 2, 1, 3)
            for part in mx.split(self.qkv(x), 3, axis=-1)
        )
        y = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=(d // 4) ** -0.5, mask=self.mask
        )
        return self.out(y.transpose(0, 2, 1, 3).reshape(b, s, d))


class Layer(nn.Module):
    """A transformer layer: norms before their parts, or after the sums."""

    def __init__(self, mask: str | None, post: bool, act: Any, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(mask)
        self.ln1, self.ln2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 128), nn.Linear(128, HIDDEN)
        self.dropout = nn.Dropout(dropout)
        self.post, self.act = post, act

    def mlp(self, x: mx.array) -> mx.array:
        return self.dropout(self.down(self.act(self.up(x))))

    def __call__(self, x: mx.array) -> mx.array:
        if self.post:
            x = self.ln1(x + self.attention(x))
            return self.ln2(x + self.mlp(x))
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


def lora() -> nn.Module:
    """A Llama layer with adapters on every product, the rest frozen."""
    from mlx_lm.tuner.lora import LoRALinear

    layer = llama()
    layer.freeze()
    leaves = [
        (path, LoRALinear.from_base(m, r=8, scale=2.0))
        for path, m in layer.named_modules()
        if isinstance(m, nn.Linear)
    ]
    layer.update_modules(tree_unflatten(leaves))
    for _, m in leaves:
        m.lora_b = mx.random.normal(m.lora_b.shape) * 0.1
    return layer


def qlora() -> nn.Module:
    """The same over a quantised base."""
    from mlx_lm.tuner.lora import LoRALinear

    layer = llama()
    nn.quantize(layer, group_size=32, bits=4)
    layer.freeze()
    leaves = [
        (path, LoRALinear.from_base(m, r=8, scale=2.0))
        for path, m in layer.named_modules()
        if isinstance(m, nn.QuantizedLinear)
    ]
    layer.update_modules(tree_unflatten(leaves))
    for _, m in leaves:
        m.lora_b = mx.random.normal(m.lora_b.shape) * 0.1
    return layer


def causal(layer: nn.Module, x: mx.array) -> mx.array:
    """How mlx-lm calls a layer."""
    return layer(x, "causal", None)


def plain(layer: nn.Module, x: mx.array) -> mx.array:
    """How the layers of this file are called."""
    return layer(x)


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module, mx.array], mx.array]]
BLOCKS: dict[str, Case] = {
    "llama": (llama, causal),
    "llama_traditional_rope": (lambda: llama(rope_traditional=True), causal),
    "gpt": (lambda: Layer("causal", False, nn.gelu, 0.0), plain),
    "gpt_tanh_gelu": (lambda: Layer("causal", False, nn.gelu_approx, 0.0), plain),
    "bert": (lambda: Layer(None, True, nn.gelu, 0.0), plain),
    "vit": (lambda: Layer(None, False, nn.gelu, 0.0), plain),
    "relu": (lambda: Layer(None, False, nn.relu, 0.0), plain),
    "lora": (lora, causal),
    "qlora": (qlora, causal),
}


def make(name: str) -> tuple[nn.Module, Any]:
    """A block and its call; weights are the same each time."""
    mx.random.seed(0)
    build, call = BLOCKS[name]
    layer = build()
    mx.eval(layer.parameters())
    return layer, call


def exact(
    call: Callable[..., mx.array], layer: nn.Module, x: mx.array, dy: mx.array
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """y and the gradients by plain MLX in fp32, by the path of Block.gradients."""
    leaves = [
        (path, a)
        for path, a in tree_flatten(layer.parameters())
        if mx.issubdtype(a.dtype, mx.floating)
        and not path.endswith((".scales", ".biases"))
    ]
    before = layer.parameters()

    def function(x: mx.array, *arrays: mx.array) -> mx.array:
        named = zip((path for path, _ in leaves), arrays, strict=True)
        layer.update(tree_unflatten(list(named)))
        try:
            return call(layer, x)
        finally:
            layer.update(before)

    (y,), gradients = mx.vjp(function, [x, *(a for _, a in leaves)], [dy])
    paths = ["1", *(f"0.{path}" for path, _ in leaves)]
    return np.array(y), dict(zip(paths, map(np.array, gradients), strict=True))


def error(got: Any, expected: Any) -> float:
    """|got - expected| / |expected|, in float64."""
    got, expected = (np.asarray(a, np.float64) for a in (got, expected))
    scale = np.linalg.norm(expected)
    return float(np.linalg.norm(got - expected) / (scale or 1.0))
