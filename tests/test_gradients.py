"""Gradients of linear(): exact, only those asked for, through every transform."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import CASES, DTYPES, Case, exact, max_error, norm_error
from hypothesis import given
from hypothesis import strategies as st

import mlx_ane as ane


def gradients(
    x: mx.array, weight: mx.array, bias: mx.array | None, dy: mx.array, device: str
) -> list[mx.array]:
    """dx, dW and, with a bias, db of the product by mx.vjp."""
    primals = [x, weight] + ([] if bias is None else [bias])
    _, found = mx.vjp(lambda *a: ane.linear(*a, device=device), primals, [dy])
    return found


def expected_gradients(
    x: mx.array, weight: mx.array, bias: mx.array | None, dy: mx.array
) -> list[np.ndarray]:
    """The same in float64: dx = dy W, dW = dyᵀ x, db = Σ dy."""
    dy_rows = exact(dy).reshape(-1, weight.shape[0])
    x_rows = exact(x).reshape(-1, weight.shape[1])
    found = [exact(dy) @ exact(weight), dy_rows.T @ x_rows]
    return found + ([] if bias is None else [dy_rows.sum(axis=0)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_match_float64(case: Case, device: str) -> None:
    x, weight, bias = case.arrays()
    dy = mx.random.normal((*case.x[:-1], case.n))
    got = gradients(x, weight, bias, dy, device)
    for gradient, expected in zip(
        got, expected_gradients(x, weight, bias, dy), strict=True
    ):
        assert gradient.dtype == mx.float32
        assert max_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_half_gradients_are_no_further_from_float64_than_mlx(
    case: Case, dtype: mx.Dtype, device: str
) -> None:
    x, weight, bias = case.arrays(dtype)
    dy = mx.random.normal((*case.x[:-1], case.n)).astype(dtype)
    got = gradients(x, weight, bias, dy, device)
    _, mlx = mx.vjp(lambda x, w, b: mx.addmm(b, x, w.T), [x, weight, bias], [dy])
    expected = expected_gradients(x, weight, bias, dy)
    for ours, theirs, exactly in zip(got, mlx, expected, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert norm_error(ours, exactly) <= norm_error(theirs, exactly) * 1.01


def test_views_of_the_cotangent(device: str) -> None:
    x, weight, bias = CASES[2].arrays()
    dy = mx.random.normal((256, 48)).T  # (S, N), transposed
    got = gradients(x, weight, bias, dy, device)
    for gradient, expected in zip(
        got, expected_gradients(x, weight, bias, dy), strict=True
    ):
        assert max_error(gradient, expected) <= 1e-5
    broadcast = mx.broadcast_to(mx.array(0.5), (48, 256))  # as mean() gives it
    got = gradients(x, weight, bias, broadcast, device)
    for gradient, expected in zip(
        got, expected_gradients(x, weight, bias, broadcast), strict=True
    ):
        assert max_error(gradient, expected) <= 1e-5


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [
        ((0,), {"gemm_dx": 1, "gemm_dw": 0}),
        ((1,), {"gemm_dx": 0, "gemm_dw": 1}),
        ((2,), {"gemm_dx": 0, "gemm_dw": 0}),
        ((0, 1, 2), {"gemm_dx": 1, "gemm_dw": 1}),
    ],
    ids=str,
)
def test_only_the_gradients_asked_for_are_computed(
    device: str, argnums: tuple[int, ...], expected: dict[str, int]
) -> None:
    arrays = CASES[0].arrays()

    def loss(*a: mx.array) -> mx.array:
        return mx.sum(mx.square(ane.linear(*a, device=device)))

    mx.eval(mx.grad(loss, argnums=argnums)(*arrays))
    counts = ane.counters()
    assert {name: counts[name] for name in expected} == expected


def test_second_order(device: str) -> None:
    x, weight, _ = CASES[1].arrays()

    def penalty(f, x: mx.array, w: mx.array) -> mx.array:
        slope = mx.grad(lambda x: mx.sum(mx.tanh(f(x, w))))(x)
        return mx.sum(mx.square(slope))

    def plain(x: mx.array, w: mx.array) -> mx.array:
        return x @ w.T

    def ours(x: mx.array, w: mx.array) -> mx.array:
        return ane.linear(x, w, device=device)

    got = mx.grad(lambda x, w: penalty(ours, x, w), argnums=(0, 1))(x, weight)
    want = mx.grad(lambda x, w: penalty(plain, x, w), argnums=(0, 1))(x, weight)
    tolerance = 1e-4 if device == "cpu" else 5e-3
    for a, b in zip(got, want, strict=True):
        assert norm_error(a, exact(b)) <= tolerance


def test_compiled_gradient_is_the_plain_one(device: str) -> None:
    x, weight, bias = CASES[3].arrays()

    def loss(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
        return mx.mean(mx.square(ane.linear(mx.tanh(x), w, b, device=device)))

    step = mx.value_and_grad(loss, argnums=(0, 1, 2))
    value, plain = step(x, weight, bias)
    compiled_value, compiled = mx.compile(step)(x, weight, bias)
    assert mx.allclose(value, compiled_value, rtol=1e-6)
    for a, b in zip(plain, compiled, strict=True):
        assert max_error(b, exact(a)) <= 1e-6


def test_checkpoint(device: str) -> None:
    x, weight, bias = CASES[0].arrays()

    def block(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
        return mx.tanh(ane.linear(x, w, b, device=device))

    def loss(f):
        return mx.grad(lambda *a: mx.sum(f(*a) ** 2), argnums=(0, 1, 2))

    plain = loss(block)(x, weight, bias)
    mx.eval(plain)
    calls = ane.counters()["linear_calls"]
    checkpointed = loss(mx.checkpoint(block))(x, weight, bias)
    mx.eval(checkpointed)
    assert ane.counters()["linear_calls"] - calls == 2 * calls
    for a, b in zip(plain, checkpointed, strict=True):
        assert mx.array_equal(a, b)


def test_vmap_of_grad_gives_per_sample_gradients(device: str) -> None:
    x = mx.random.normal((3, 40, 24))
    weight = mx.random.normal((16, 24))

    def loss(w: mx.array, x: mx.array) -> mx.array:
        return mx.sum(mx.square(ane.linear(x, w, device=device)))

    got = mx.vmap(mx.grad(loss), in_axes=(None, 0))(weight, x)
    assert got.shape == (3, 16, 24)
    for i in range(3):
        y = exact(x[i]) @ exact(weight).T
        tolerance = 1e-5 if device == "cpu" else 2e-3
        assert max_error(got[i], 2 * y.T @ exact(x[i])) <= tolerance


def test_model_gradients_equal_plain_mlx(device: str) -> None:
    model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 40))
    x, target = mx.random.normal((64, 48)), mx.random.normal((64, 40))

    def loss(x: mx.array, target: mx.array) -> mx.array:
        return nn.losses.mse_loss(model(x), target)

    plain_value, plain = nn.value_and_grad(model, loss)(x, target)
    ane.convert(model, device=device)
    value, got = nn.value_and_grad(model, loss)(x, target)
    tolerance = 1e-5 if device == "cpu" else 5e-3
    assert abs(value.item() / plain_value.item() - 1) <= tolerance
    for i in (0, 2):
        for name in ("weight", "bias"):
            expected = exact(plain["layers"][i][name])
            assert norm_error(got["layers"][i][name], expected) <= tolerance


@given(rows=st.integers(1, 70), k=st.integers(1, 70), n=st.integers(1, 70))
def test_any_shape(rows: int, k: int, n: int) -> None:
    x, weight, bias = Case(f"{rows} {k} {n}", (rows, k), n).arrays()
    dy = mx.random.normal((rows, n), key=mx.random.key(rows))
    got = gradients(x, weight, bias, dy, "cpu")
    for gradient, expected in zip(
        got, expected_gradients(x, weight, bias, dy), strict=True
    ):
        assert max_error(gradient, expected) <= 1e-5
