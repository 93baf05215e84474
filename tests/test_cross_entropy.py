"""Cross-entropy against mlx.nn.losses.cross_entropy, argument by argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, exact, norm_error
from hypothesis import given
from hypothesis import strategies as st
from mlx.nn.losses import cross_entropy as plain

import mlx_ane as ane

ours = ane.fast.cross_entropy
BOUND = {mx.float32: 1e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}


def gradient(f: Callable[..., mx.array], logits: mx.array, targets: mx.array) -> Any:
    """Gradient of logits of the mean loss."""
    return mx.grad(lambda x: f(x, targets).mean())(logits)


def compare(logits: mx.array, targets: mx.array, **options: Any) -> None:
    """Equal dtypes, values and gradients; sums are compared in float32."""
    got, expected = ours(logits, targets, **options), plain(logits, targets, **options)
    assert got.dtype == expected.dtype
    wide = plain(logits.astype(mx.float32), targets, **options)
    bound = BOUND[logits.dtype]
    assert norm_error(got, exact(wide)) < bound

    def d(f: Callable[..., mx.array], x: mx.array) -> mx.array:
        square = lambda x: f(x, targets, **options).astype(mx.float32) ** 2  # noqa: E731
        return mx.grad(lambda x: square(x).sum())(x)

    found = d(ours, logits)
    assert found.dtype == logits.dtype
    assert norm_error(found, exact(d(plain, logits.astype(mx.float32)))) < 2 * bound


@given(
    shape=st.sampled_from([(7,), (5, 33), (2, 3, 17), (1, 40), (2, 3, 4, 1)]),
    dtype=st.sampled_from(DTYPES),
    index=st.sampled_from([mx.int32, mx.int64, mx.uint8, mx.int16, mx.uint64]),
    axis=st.integers(-4, 3),
    smoothing=st.sampled_from([0.0, 0.3]),
    weighted=st.sampled_from([None, *DTYPES]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    probabilities=st.booleans(),
)
def test_as_mlx(
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    index: mx.Dtype,
    axis: int,
    smoothing: float,
    weighted: mx.Dtype | None,
    reduction: str,
    probabilities: bool,
) -> None:
    axis = max(-len(shape), min(axis, len(shape) - 1))
    logits = (3 * mx.random.normal(shape)).astype(dtype)
    kept = list(shape)
    size = kept.pop(axis)
    if probabilities:
        targets = mx.softmax(mx.random.normal(shape), axis)
    else:
        targets = mx.random.randint(0, size, kept).astype(index)
    weights = None if weighted is None else mx.random.uniform(0, 1, kept, weighted)
    options = {"axis": axis, "label_smoothing": smoothing, "reduction": reduction}
    compare(logits, targets, weights=weights, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [32, 250])
def test_ignored_labels_times_a_mask(dtype: mx.Dtype, vocabulary: int) -> None:
    logits = mx.random.normal((6, vocabulary)).astype(dtype)
    targets = mx.array([3, -100, 31, -100, vocabulary, 0])
    mask = (targets >= 0) * (targets < vocabulary)

    def loss(f: Callable[..., mx.array], x: mx.array, targets: mx.array) -> mx.array:
        return (f(x, targets).astype(mx.float32) * mask).sum() / mask.sum()

    known = mx.where(mask, targets, 0)
    wide = logits.astype(mx.float32)
    for smoothing in (0.0, 0.1):
        f = lambda x, t, s=smoothing: ours(x, t, label_smoothing=s)  # noqa: E731
        g = lambda x, t, s=smoothing: plain(x, t, label_smoothing=s)  # noqa: E731
        assert norm_error(loss(f, logits, targets), exact(loss(g, wide, known))) < 1e-2
        got = mx.grad(lambda x, f=f: loss(f, x, targets))(logits)
        expected = mx.grad(lambda x, g=g: loss(g, x, known))(wide)
        assert norm_error(got, exact(expected)) < BOUND[dtype]


def test_negative_indices_count_from_the_end() -> None:
    logits = mx.random.normal((4, 128))
    compare(logits, mx.array([-1, -100, -128, 5]))


def test_indices_outside_have_no_loss() -> None:
    logits = mx.random.normal((5, 8))
    far = mx.array([-9, 8, 1 << 40, -(1 << 40), (1 << 32) + 1], mx.int64)
    assert mx.array_equal(ours(logits, far), mx.zeros(5))
    assert mx.array_equal(gradient(ours, logits, far), mx.zeros((5, 8)))


def test_large_logits_keep_their_differences() -> None:
    logits = 1e8 + 16 * mx.arange(12).reshape(3, 4).astype(mx.float32)
    logits = mx.concatenate([logits, mx.full((1, 4), -1e30), mx.zeros((1, 4))])
    for smoothing in (0.0, 0.2):
        compare(logits, mx.array([0, 3, 1, 2, 0]), label_smoothing=smoothing)


def test_infinite_logits() -> None:
    inf = float("inf")
    rows = [[0.0, -inf, 1.0], [inf, 0.0, 1.0], [-inf, -inf, -inf], [0.0, 1.0, 2.0]]
    logits, targets = mx.array(rows), mx.array([0, 1, 2, 1])
    got, expected = ours(logits, targets), plain(logits, targets)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-6)
    got, expected = gradient(ours, logits, targets), gradient(plain, logits, targets)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("dtype", [mx.int32, mx.bool_, mx.uint8], ids=str)
def test_logits_of_whole_numbers(dtype: mx.Dtype) -> None:
    logits, targets = mx.array([[0, 1, 3], [2, 0, 1]]).astype(dtype), mx.array([0, 2])
    got, expected = ours(logits, targets), plain(logits, targets)
    assert got.dtype == expected.dtype and mx.array_equal(got, expected)


def test_transformations() -> None:
    logits, targets = mx.random.normal((4, 6, 9)), mx.random.randint(0, 9, (4, 6))
    weights = mx.random.uniform(shape=(4, 6))

    def value(f: Callable[..., mx.array], x: mx.array, w: mx.array) -> mx.array:
        return f(x, targets, w, reduction="mean")

    for argument in (0, 1):
        got = mx.grad(lambda x, w: value(ours, x, w), argument)(logits, weights)
        expected = mx.grad(lambda x, w: value(plain, x, w), argument)(logits, weights)
        assert norm_error(got, exact(expected)) < 1e-5
        compiled = mx.compile(mx.grad(lambda x, w: value(ours, x, w), argument))
        assert norm_error(compiled(logits, weights), exact(expected)) < 1e-5
    got = mx.vmap(ours)(logits, targets)
    assert norm_error(got, exact(plain(logits, targets))) < 1e-5
    d = mx.random.normal(logits.shape)
    _, got = mx.jvp(lambda x: ours(x, targets), [logits], [d])
    _, expected = mx.jvp(lambda x: plain(x, targets), [logits], [d])
    assert norm_error(got[0], exact(expected[0])) < 1e-5

    def second(f: Callable[..., mx.array]) -> mx.array:
        inner = mx.grad(lambda x: (f(x, targets) ** 2).sum())
        return mx.grad(lambda x: (inner(x) * d).sum())(logits)

    assert norm_error(second(ours), exact(second(plain))) < 1e-5


X, T = mx.zeros((4, 6, 9)), mx.zeros((4, 6), mx.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, T[:3]), {}, r"targets have shape \(3, 6\) and logits \(4, 6, 9\)"),
        ((X, T), {"axis": 0}, r"need targets of shape \(6, 9\)"),
        ((X, X[:1]), {}, r"targets have shape \(1, 6, 9\)"),
        ((X, T), {"axis": 3}, "axis is 3, need one of the 3 axes"),
        ((mx.array(1.0), mx.array(0)), {}, "axis is -1, need one of the 0 axes"),
        ((X, T.astype(mx.float32)), {}, "indices have dtype float32, need integers"),
        ((X, T > 0), {}, "indices have dtype bool, need integers"),
        ((X, T, X[0]), {}, r"weights have shape \(6, 9\), need .* \(4, 6\)"),
        ((X, T), {"label_smoothing": 1.0}, r"label_smoothing is 1.0, need"),
        ((X, T), {"label_smoothing": -0.1}, r"label_smoothing is -0.1, need"),
        ((X, T), {"reduction": "max"}, "reduction is 'max', need 'none'"),
        ((X, [1]), {}, "targets is list, need mx.array"),
        ((X, T, 1.0), {}, "weights is float, need mx.array"),
    ],
)
def test_arguments(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r"^\[mlx_ane.fast.cross_entropy\] ") as error:
        ours(*arguments, **options)
    assert error.match(message)
