"""fast.scaled_dot_product_attention(): MLX's function, masks, sinks, gradients."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, exact, max_error, norm_error

import mlx_ane as ane

attention = ane.fast.scaled_dot_product_attention
mlx_attention = mx.fast.scaled_dot_product_attention

#: Batch, query heads, key heads, queries, keys, D, D of values.
SHAPES = [
    (1, 1, 1, 1, 1, 8, 8),
    (2, 4, 4, 33, 33, 32, 32),
    (2, 4, 2, 40, 40, 32, 32),
    (1, 8, 1, 17, 65, 64, 64),
    (1, 4, 4, 1, 70, 32, 32),
    (1, 2, 2, 100, 100, 40, 24),
    (1, 6, 3, 300, 300, 64, 64),
]


def arrays(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32) -> list[mx.array]:
    """q, k and v of N(0, 1)."""
    b, h, g, s, t, d, e = shape
    found = [
        mx.random.normal(size).astype(dtype)
        for size in ((b, h, s, d), (b, g, t, d), (b, g, t, e))
    ]
    mx.eval(found)
    return found


def mask_of(kind: str, shape: tuple[int, ...]):
    """A mask of MLX's function, and what is added to the scores in NumPy."""
    b, h, _, s, t, _, _ = shape
    if kind == "causal":
        return "causal", np.where(
            np.arange(t) <= np.arange(s)[:, None] + t - s, 0, -np.inf
        )
    if kind == "boolean":
        allowed = np.random.default_rng(0).random((b, 1, s, t)) < 0.7
        allowed[..., 0] = True  # no empty row
        return mx.array(allowed), np.where(allowed, 0, -np.inf)
    if kind == "additive":
        added = np.random.default_rng(1).standard_normal((h, s, t)).astype(np.float32)
        return mx.array(added), added
    return None, 0.0


def expected(q, k, v, scale: float, added, sinks=None) -> np.ndarray:
    """softmax(scale q kᵀ + added) v in float64; sinks take part without a value."""
    q, k, v = exact(q), exact(k), exact(v)
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, 1), np.repeat(v, repeats, 1)
    scores = scale * q @ k.swapaxes(-1, -2) + added
    if sinks is not None:
        column = np.broadcast_to(exact(sinks)[:, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([column, scores], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights if sinks is None else weights[..., 1:]) @ v


@pytest.mark.parametrize("mask", [None, "causal", "boolean", "additive"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_match_float64(device: str, shape: tuple, mask: str | None) -> None:
    if mask == "causal" and shape[3] > shape[4]:
        pytest.skip("more queries than keys")
    q, k, v = arrays(shape)
    scale = shape[5] ** -0.5
    array, added = mask_of(mask, shape)
    got = attention(q, k, v, scale=scale, mask=array, device=device)
    assert got.shape == (*q.shape[:3], v.shape[3])
    want = expected(q, k, v, scale, added)
    assert max_error(got, want) <= (1e-5 if device == "cpu" else 5e-3)
    assert norm_error(mlx_attention(q, k, v, scale=scale, mask=array), want) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(device: str, dtype: mx.Dtype) -> None:
    q, k, v = arrays(SHAPES[2], dtype)
    got = attention(q, k, v, scale=0.2, mask="causal", device=device)
    assert got.dtype == dtype
    _, added = mask_of("causal", SHAPES[2])
    rounding = 1e-3 if dtype == mx.float16 else 1e-2
    assert max_error(got, expected(q, k, v, 0.2, added)) <= 5e-3 + rounding


def test_sinks(device: str) -> None:
    q, k, v = arrays(SHAPES[2])
    sinks = mx.random.normal((4,))
    got = attention(q, k, v, scale=0.2, sinks=sinks, device=device)
    want = expected(q, k, v, 0.2, 0.0, sinks)
    assert max_error(got, want) <= (1e-5 if device == "cpu" else 5e-3)


@pytest.mark.parametrize("mask", [None, "causal", "boolean", "additive"])
@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_gradients_match_mlx(device: str, shape: tuple, mask: str | None) -> None:
    q, k, v = arrays(shape)
    array, _ = mask_of(mask, shape)
    dy = mx.random.normal((*q.shape[:3], v.shape[3]))
    scale = shape[5] ** -0.5

    def gradients(function, **options) -> list[mx.array]:
        _, found = mx.vjp(
            lambda *a: function(*a, scale=scale, mask=array, **options), [q, k, v], [dy]
        )
        return found

    tolerance = 1e-4 if device == "cpu" else 1e-2
    for ours, theirs in zip(
        gradients(attention, device=device), gradients(mlx_attention), strict=True
    ):
        assert norm_error(ours, exact(theirs)) <= tolerance


def test_compile_and_vmap(device: str) -> None:
    q, k, v = arrays(SHAPES[2])

    def call(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention(q, k, v, scale=0.2, mask="causal", device=device)

    plain = call(q, k, v)
    assert norm_error(mx.compile(call)(q, k, v), exact(plain)) <= 1e-6
    stacked = [mx.stack([a, 2 * a]) for a in (q, k, v)]
    mapped = mx.vmap(call)(*stacked)
    tolerance = 1e-5 if device == "cpu" else 5e-3
    assert norm_error(mapped[0], exact(plain)) <= tolerance
    assert norm_error(mapped[1], exact(call(2 * q, 2 * k, 2 * v))) <= tolerance


def test_views(device: str) -> None:
    q, k, v = (a.swapaxes(1, 2) for a in arrays((2, 40, 40, 4, 4, 32, 32)))
    got = attention(q, k, v, scale=0.2, device=device)  # heads were the third axis
    want = expected(q, k, v, 0.2, 0.0)
    assert max_error(got, want) <= (1e-5 if device == "cpu" else 5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": "casual"}, "mask is 'casual', need 'causal'"),
        ({"mask": 3}, "mask is int, need mx.array"),
        ({"q": 3.0}, "q is float, need mx.array"),
        ({"q": mx.ones((2, 3, 5, 8))}, "heads"),
        ({"k": mx.ones((2, 2, 7, 9))}, r"\[mlx_ane"),
        ({"v": mx.ones((2, 2, 6, 8))}, r"\[mlx_ane"),
        ({"q": mx.ones((4, 5, 8))}, r"\[mlx_ane"),
        ({"q": mx.ones((2, 4, 5, 8), mx.int32)}, "int32"),
        ({"mask": mx.ones((9, 9))}, r"\[mlx_ane|broadcast"),
        ({"sinks": mx.ones((3,))}, "sinks"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
    ids=str,
)
def test_bad_arguments(change: dict, message: str) -> None:
    arguments = {
        "q": mx.ones((2, 4, 5, 8)),
        "k": mx.ones((2, 2, 7, 8)),
        "v": mx.ones((2, 2, 7, 8)),
        "scale": 1 / math.sqrt(8),
        **change,
    }
    q, k, v = (arguments.pop(name) for name in "qkv")
    with pytest.raises(ValueError, match=message) as caught:
        mx.eval(attention(q, k, v, **arguments))
    assert "\n" not in str(caught.value)
