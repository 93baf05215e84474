"""Capture: the tape is the function, and nothing else is touched."""

from __future__ import annotations

import threading

import mlx.core as mx
import numpy as np
import pytest
from blocks import BLOCKS, Layer, error, llama, make
from mlx import nn
from mlx.utils import tree_flatten

import mlx_ane as ane
from mlx_ane.capture import capture, gradients
from mlx_ane.tape import Unsupported

X = (2, 64, 64)
_THREADS: list[int] = []


@pytest.mark.parametrize("name", BLOCKS)
def test_the_tape_is_the_function(name: str) -> None:
    layer, call = make(name)
    x = mx.random.normal(X)
    captured = capture(call, layer, x)
    (y,) = captured.body.run(*captured.arguments(layer, x))
    assert error(y, call(layer, x)) < 1e-6


@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_the_backward_tape_is_the_gradient(name: str) -> None:
    layer, call = make(name)
    x, dy = mx.random.normal(X), mx.random.normal(X)
    captured = capture(call, layer, x)
    inputs = captured.arguments(layer, x)
    wanted = range(len(inputs))
    got = gradients(captured.body, wanted).run(dy, *inputs)
    _, expected = mx.vjp(captured.body.run, inputs, [dy])
    assert len(got) == len(inputs)
    for g, e in zip(got, expected, strict=True):
        assert error(g, e) < 1e-5
    _, (dx,) = mx.vjp(lambda x: call(layer, x), [x], [dy])
    assert error(got[0], dx) < 1e-5


FAST = {
    "rms_norm": (lambda x, w: mx.fast.rms_norm(x, w, 1e-5), ["Unit"]),
    "layer_norm": (lambda x, w: mx.fast.layer_norm(x, w, w, 1e-5), ["Unit"]),
    "rms_norm by hand": (
        lambda x, w: w * (x * mx.rsqrt(x.square().mean(-1, keepdims=True) + 1e-5)),
        ["Unit"],
    ),
    "l2 norm": (
        lambda x, w: w * (x / mx.sqrt((x * x).sum(-1, keepdims=True) + 1e-5)),
        ["Unit"],
    ),
    "rope": (
        lambda x, w: (
            w * mx.fast.rope(x, 16, traditional=False, base=1e4, scale=1.0, offset=0)
        ),
        ["Rotate"],
    ),
    "rope of a part": (
        lambda x, w: (
            w * mx.fast.rope(x, 8, traditional=False, base=1e4, scale=0.5, offset=3)
        ),
        ["Rotate"],
    ),
    "rope of neighbours": (
        lambda x, w: (
            w * mx.fast.rope(x, 16, traditional=True, base=1e4, scale=1.0, offset=0)
        ),
        ["Rotate"],
    ),
    "rope of some neighbours": (
        lambda x, w: (
            w * mx.fast.rope(x, 8, traditional=True, base=1e4, scale=1.0, offset=0)
        ),
        ["Rotate"],
    ),
    "grouped heads": (
        lambda x, w: mx.fast.scaled_dot_product_attention(
            x, x[:, :2], w * x[:, 2:], scale=0.25, mask="causal"
        ),
        ["GroupedMatmul", "GroupedMatmul"],
    ),
    "depthwise convolution": (
        lambda x, w: mx.conv1d(
            x[:, 0], mx.broadcast_to(w[:, None, None], (16, 3, 1)), groups=16
        ),
        ["Depthwise"],
    ),
}


@pytest.mark.parametrize("name", FAST)
def test_forms_are_recognised(name: str) -> None:
    function, expected = FAST[name]
    x, w = mx.random.normal((2, 4, 32, 16)), mx.random.normal((16,)) + 1.0
    captured = capture(function, x, w)
    ours = {"Unit", "Rotate", "GroupedMatmul", "Depthwise"}
    assert [n.name for n in captured.body.nodes if n.name in ours] == expected
    inputs = captured.arguments(x, w)
    (y,) = captured.body.run(*inputs)
    exact = function(x, w)
    assert error(y, exact) < 2e-6
    dy = mx.random.normal(exact.shape)
    got = gradients(captured.body, [0]).run(dy, *inputs)
    _, (dx,) = mx.vjp(lambda x: function(x, w), [x], [dy])
    assert error(got[0], dx) < 5e-6


def test_what_only_looks_like_a_norm_is_left_alone() -> None:
    def of_another(x: mx.array, t: mx.array) -> mx.array:
        return x * mx.rsqrt(t.square().mean(-1, keepdims=True) + 1e-5)

    def of_columns(x: mx.array, t: mx.array) -> mx.array:
        return x * mx.rsqrt(x.square().mean(-2, keepdims=True) + t[0, 0])

    def divided(x: mx.array, t: mx.array) -> mx.array:
        return mx.sqrt(x.square().mean(-1, keepdims=True) + 1e-5) / x * t

    x, t = mx.random.normal((8, 8)) + 3, mx.random.normal((8, 8)) + 3
    for function in (of_another, of_columns, divided):
        captured = capture(function, x, t)
        assert "Unit" not in [n.name for n in captured.body.nodes]
        (y,) = captured.body.run(*captured.arguments(x, t))
        assert error(y, function(x, t)) < 1e-6


def test_what_only_looks_like_a_rotation_is_left_alone() -> None:
    def reflect(x: mx.array, t: mx.array) -> mx.array:
        a, b = x[..., :8], x[..., 8:]
        return mx.concatenate([a * t - b * t, a * t - b * t], -1)

    x, t = mx.random.normal((4, 16)), mx.random.normal((4, 8))
    captured = capture(reflect, x, t)
    assert "Rotate" not in [n.name for n in captured.body.nodes]


def test_private_arrays_are_inputs() -> None:
    layer = llama(
        rope_scaling={
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    )
    x = mx.random.normal(X)
    captured = capture(lambda layer, x: layer(x, "causal", None), layer, x)
    assert "0.self_attn.rope._freqs" in [leaf.path for leaf in captured.leaves]
    before = captured.body.run(*captured.arguments(layer, x))[0]
    layer.self_attn.rope._freqs = layer.self_attn.rope._freqs * 2
    after = captured.body.run(*captured.arguments(layer, x))[0]
    assert error(after, layer(x, "causal", None)) < 1e-6
    assert error(after, before) > 1e-3


def test_capture_inside_a_trace() -> None:
    layer, x = llama(), mx.random.normal(X)

    def function(layer: nn.Module, x: mx.array) -> mx.array:
        return layer(x, "causal", None)

    def traced(x: mx.array, weight: mx.array) -> mx.array:
        layer.self_attn.q_proj.weight = weight
        captured = capture(function, layer, x)
        return captured.body.run(*captured.arguments(layer, x))[0]

    weight = layer.self_attn.q_proj.weight
    expected = function(layer, x)
    assert error(mx.compile(traced)(x, weight), expected) < 1e-6
    layer.self_attn.q_proj.weight = weight
    gradient = mx.grad(lambda w: traced(x, w).square().sum())(weight)
    layer.self_attn.q_proj.weight = weight

    def loss(w: mx.array) -> mx.array:
        layer.self_attn.q_proj.weight = w
        return function(layer, x).square().sum()

    assert error(gradient, mx.grad(loss)(weight)) < 1e-5


def test_closed_over_arrays_are_inputs() -> None:
    x, table = mx.random.normal((4, 8)), mx.random.normal((4, 8))
    scale = mx.array(2.0)

    def run(table: mx.array, scale: mx.array) -> mx.array:
        captured = capture(lambda x: x * table * scale, x)
        assert [leaf.path for leaf in captured.leaves] == [
            "0",
            "fun.scale",
            "fun.table",
        ]
        return captured.body.run(*captured.arguments(x))[0].sum()

    exact = (x * table * scale).sum()
    assert error(run(table, scale), exact) < 1e-6
    # In a trace they are tracers.
    assert error(mx.compile(run)(table, scale), exact) < 1e-6
    gradients = mx.grad(run, argnums=(0, 1))(table, scale)
    assert error(gradients[0], x * scale) < 1e-6
    assert error(gradients[1], (x * table).sum()) < 1e-6


def test_closed_over_modules_are_inputs() -> None:
    layer, x = nn.Linear(8, 8), mx.random.normal((4, 8))
    captured = capture(lambda x: layer(x), x)
    before = captured.body.run(*captured.arguments(x))[0]
    assert error(before, layer(x)) < 1e-6
    layer.weight = layer.weight * 2
    assert error(captured.body.run(*captured.arguments(x))[0], layer(x)) < 1e-6


def test_dropout_is_that_of_mlx() -> None:
    layer = Layer(None, False, nn.gelu, 0.3)
    layer.attention.out = nn.Sequential(layer.attention.out, nn.Dropout(0.5))
    x = mx.random.normal(X)
    mx.random.seed(3)
    captured = capture(lambda layer, x: layer(x), layer, x)
    assert captured.draws == 2
    for _ in range(2):
        state = mx.array(mx.random.state[0])
        got = captured.body.run(*captured.arguments(layer, x))[0]
        after = mx.array(mx.random.state[0])
        _set_random_state(state)
        assert error(got, layer(x)) < 1e-6
        assert mx.array_equal(mx.random.state[0], after).item()
        assert not mx.array_equal(after, state).item()
    captured = capture(lambda layer, x: layer(x), layer.eval(), x)
    assert captured.draws == 0


def _set_random_state(key: mx.array) -> None:
    seed = [0]

    def copy() -> mx.array:
        mx.random.seed(seed[0])
        return mx.array(mx.random.state[0])

    # A seed is the key's 64 bits.
    high, low = (int(k) for k in np.array(key))
    seed[0] = (high << 32) | low
    assert mx.array_equal(copy(), key).item()


def test_nothing_is_touched() -> None:
    layer, call = make("lora")
    layer.train()
    x = mx.random.normal(X)
    arrays = [(k, id(a)) for k, a in tree_flatten(layer)]
    modules = [(k, id(m), type(m), m.training) for k, m in layer.named_modules()]
    state = np.array(mx.random.state[0])
    written: list[mx.array] = []  # closed over: the capture has a copy
    _THREADS.clear()

    class Cache:
        def __init__(self) -> None:
            self.keys: mx.array | None = None

        def store(self, x: mx.array) -> mx.array:
            self.keys = x
            return x

    cache = Cache()

    def writes(layer: nn.Module, x: mx.array, cache: Cache) -> mx.array:
        _THREADS.append(threading.get_ident())
        written.append(x)
        layer.self_attn.q_proj.linear.weight = x[0] * 2
        return call(layer, cache.store(x))

    mx.set_default_device(mx.cpu)
    gradients(capture(writes, layer, x, cache).body, [0])
    assert _THREADS and threading.get_ident() not in _THREADS
    assert not written
    assert cache.keys is None
    assert [(k, id(a)) for k, a in tree_flatten(layer)] == arrays
    assert [
        (k, id(m), type(m), m.training) for k, m in layer.named_modules()
    ] == modules
    assert np.array_equal(np.array(mx.random.state[0]), state)
    assert mx.default_device() == mx.cpu
    assert not ane._capturing.capturing()


def test_checkpointed_classes_are_captured_as_they_were() -> None:
    from mlx_lm.models.llama import TransformerBlock
    from mlx_lm.tuner.trainer import grad_checkpoint

    layer, call = make("llama")
    x = mx.random.normal(X)
    expected = call(layer, x)
    original = TransformerBlock.__call__
    try:
        grad_checkpoint(layer)
        grad_checkpoint(layer)
        captured = capture(call, layer, x)
        patched = TransformerBlock.__call__
    finally:
        TransformerBlock.__call__ = original
    assert patched is not original
    (y,) = captured.body.run(*captured.arguments(layer, x))
    assert error(y, expected) < 1e-6


def test_layers_of_ours_are_captured_as_plain_ones() -> None:
    for name in ("llama", "qlora"):
        layer, call = make(name)
        x = mx.random.normal(X)
        expected = call(layer, x)
        ane.convert(layer, device="emulated")
        captured = capture(call, layer, x)
        assert not any(n.name.startswith("ANE") for n in captured.body.nodes)
        (y,) = captured.body.run(*captured.arguments(layer, x))
        assert error(y, expected) < 1e-6


OPS = {
    "linear": lambda x: ane.linear(x, x, device="emulated"),
    "matmul": lambda x: ane.matmul(x, x, device="cpu"),
    "attention": lambda x: ane.fast.scaled_dot_product_attention(
        x[None, None], x[None, None], x[None, None], scale=0.5, mask="causal"
    ),
    "swiglu": lambda x: ane.fast.swiglu(x, x + 1),
    "cross_entropy": lambda x: ane.fast.cross_entropy(x, mx.zeros((8,), mx.int32)),
}


@pytest.mark.parametrize("name", OPS)
def test_ops_of_ours_are_captured_as_plain_ones(name: str) -> None:
    x = mx.random.normal((8, 8))
    captured = capture(OPS[name], x)
    assert error(captured.body.run(*captured.arguments(x))[0], OPS[name](x)) < 1e-3


def test_one_program_serves_every_float_type() -> None:
    layer, call = make("llama")
    x = mx.random.normal(X)
    names = [n.name for n in capture(call, layer, x).body.nodes]
    layer.set_dtype(mx.bfloat16)
    captured = capture(call, layer, x.astype(mx.bfloat16))
    assert [n.name for n in captured.body.nodes] == names
    assert captured.leaves[0].dtype == mx.bfloat16


def test_what_cannot_be_exported_is_named() -> None:
    with pytest.raises(Unsupported, match="CustomTransforms") as caught:
        capture(lambda x: mx.checkpoint(mx.exp)(x), mx.ones((4, 4)))
    assert caught.value.primitive == "CustomTransforms"


def test_reading_a_value_is_refused() -> None:
    with pytest.raises(Unsupported, match="reads a value"):
        capture(lambda x: x * x.max().item(), mx.ones((4, 4)))


def test_an_error_of_the_function_is_its_own() -> None:
    def broken(x: mx.array) -> mx.array:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        capture(broken, mx.ones((2, 2)))
