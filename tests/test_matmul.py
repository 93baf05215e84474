"""matmul(): MLX's rules for batches, broadcasting and vectors, and gradients."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import DTYPES, TOLERANCE, exact, norm_error

import mlx_ane as ane

#: Shapes of a and b.
SHAPES = [
    ((48, 64), (64, 40)),
    ((3, 48, 64), (64, 40)),
    ((48, 64), (3, 64, 40)),
    ((2, 3, 48, 64), (3, 64, 40)),
    ((2, 1, 48, 64), (1, 3, 64, 40)),
    ((64,), (64, 40)),
    ((48, 64), (64,)),
    ((64,), (64,)),
    ((3, 48, 64), (64,)),
    ((64,), (3, 64, 40)),
    ((0, 64), (64, 40)),
    ((2, 48, 0), (2, 0, 40)),
    ((3, 33, 1), (3, 1, 40)),
]


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES, ids=str)
def test_values_and_gradients(
    device: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a, b = mx.random.normal(a_shape), mx.random.normal(b_shape)
    got = ane.matmul(a, b, device=device)
    want = exact(a) @ exact(b)
    assert got.shape == want.shape
    assert norm_error(got, want) <= TOLERANCE[device]
    dc = mx.random.normal(got.shape)
    _, ours = mx.vjp(lambda *x: ane.matmul(*x, device=device), [a, b], [dc])
    _, mlx = mx.vjp(mx.matmul, [a, b], [dc])
    for x, y in zip(ours, mlx, strict=True):
        assert norm_error(x, exact(y)) <= 1e-5


@pytest.mark.parametrize("swap_a", [False, True])
@pytest.mark.parametrize("swap_b", [False, True])
def test_transposed_operands(device: str, swap_a: bool, swap_b: bool) -> None:
    a, b = mx.random.normal((2, 40, 56)), mx.random.normal((2, 56, 48))
    if swap_a:
        a = mx.random.normal((2, 56, 40)).swapaxes(1, 2)
    if swap_b:
        b = mx.random.normal((2, 48, 56)).swapaxes(1, 2)
    got = ane.matmul(a, b, device=device)
    assert norm_error(got, exact(a) @ exact(b)) <= TOLERANCE[device]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types(device: str, dtype: mx.Dtype) -> None:
    a = mx.random.normal((3, 40, 64)).astype(dtype)
    b = mx.random.normal((3, 64, 40)).astype(dtype)
    got = ane.matmul(a, b, device=device)
    assert got.dtype == dtype
    rounding = 1e-3 if dtype == mx.float16 else 8e-3
    assert norm_error(got, exact(a) @ exact(b)) <= TOLERANCE[device] + rounding


def test_mixed_types_promote_as_mlx(device: str) -> None:
    a = mx.random.normal((40, 64)).astype(mx.float16)
    b = mx.random.normal((64, 40)).astype(mx.bfloat16)
    assert ane.matmul(a, b, device=device).dtype == (a @ b).dtype


def test_compile_and_vmap(device: str) -> None:
    a, b = mx.random.normal((4, 40, 64)), mx.random.normal((64, 40))

    def product(a: mx.array) -> mx.array:
        return ane.matmul(a, b, device=device)

    plain = product(a)
    assert mx.array_equal(mx.compile(product)(a), plain)
    assert norm_error(mx.vmap(product)(a), exact(plain)) <= 1e-5


def test_second_order(device: str) -> None:
    a, b = mx.random.normal((40, 24)), mx.random.normal((24, 36))

    def penalty(product, a: mx.array, b: mx.array) -> mx.array:
        slope = mx.grad(lambda a: mx.sum(mx.sin(product(a, b))))(a)
        return mx.sum(mx.square(slope))

    def ours(a: mx.array, b: mx.array) -> mx.array:
        return ane.matmul(a, b, device=device)

    got = mx.grad(lambda a, b: penalty(ours, a, b), argnums=(0, 1))(a, b)
    want = mx.grad(lambda a, b: penalty(mx.matmul, a, b), argnums=(0, 1))(a, b)
    for x, y in zip(got, want, strict=True):
        assert norm_error(x, exact(y)) <= (1e-4 if device == "cpu" else 2e-2)
