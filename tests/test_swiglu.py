"""SwiGLU against mlx.nn.silu(gate) * up."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import DTYPES, exact, norm_error
from mlx import nn

import mlx_ane as ane

BOUND = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 1e-2}


def plain(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up


def pair(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    return tuple(3 * mx.random.normal(shape).astype(dtype) for _ in range(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (37, 45), (2, 3, 1030)], ids=str)
def test_values_and_gradients(shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    gate, up = pair(shape, dtype)
    wide = gate.astype(mx.float32), up.astype(mx.float32)
    y = ane.fast.swiglu(gate, up)
    assert y.dtype == dtype and y.shape == shape
    assert norm_error(y, exact(plain(*wide))) < BOUND[dtype]
    _, got = mx.vjp(ane.fast.swiglu, [gate, up], [up])
    _, expected = mx.vjp(plain, list(wide), [wide[1]])
    for d, d_plain in zip(got, expected, strict=True):
        assert d.dtype == dtype
        assert norm_error(d, exact(d_plain)) < BOUND[dtype]


def test_views() -> None:
    gate, up = pair((40, 64), mx.float32)
    got = ane.fast.swiglu(gate.T[::2], up.T[1::2])
    assert norm_error(got, exact(plain(gate.T[::2], up.T[1::2]))) < 1e-6


def test_transformations() -> None:
    gate, up = pair((5, 33), mx.float32)
    expected = exact(plain(gate, up))
    assert norm_error(mx.vmap(ane.fast.swiglu)(gate, up), expected) < 1e-6
    assert norm_error(mx.compile(ane.fast.swiglu)(gate, up), expected) < 1e-6
    _, got = mx.jvp(ane.fast.swiglu, [gate, up], [up, gate])
    _, wanted = mx.jvp(plain, [gate, up], [up, gate])
    assert norm_error(got[0], exact(wanted[0])) < 1e-6


@pytest.mark.parametrize(
    ("gate", "up", "message"),
    [
        (mx.ones((2, 3)), mx.ones((3,)), r"gate \(2,3\) .* up \(3\)"),
        (mx.ones(3), mx.ones(3, mx.float16), "need equal shapes and dtypes"),
        (mx.ones(3, mx.int32), mx.ones(3), "gate of dtype int32, need float32"),
        (mx.ones(3), 1.0, "up is float, need mx.array"),
    ],
)
def test_arguments(gate: mx.array, up: mx.array, message: str) -> None:
    with pytest.raises(ValueError, match=r"^\[mlx_ane.fast.swiglu\] .*" + message):
        ane.fast.swiglu(gate, up)
