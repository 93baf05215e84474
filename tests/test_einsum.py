"""einsum(): values and gradients against float64, and what it refuses."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import TOLERANCE, exact, norm_error

import mlx_ane as ane

#: Subscripts, and the shapes of a and b.
CASES = [
    ("ij,jk->ik", (48, 64), (64, 40)),
    ("ij,jk", (48, 64), (64, 40)),  # the result in alphabetical order
    ("bqhd,bkhd->bhqk", (2, 40, 3, 16), (2, 33, 3, 16)),
    ("bhqk,bkhd->bqhd", (2, 3, 40, 33), (2, 33, 3, 16)),
    ("bi,i", (5, 64), (64,)),
    ("i,i->", (64,), (64,)),
    ("i,j->ji", (48,), (40,)),
    ("bij,bjk->b", (3, 48, 64), (3, 64, 40)),  # i and k are summed before
    ("bi,bi->bi", (3, 48), (3, 48)),
    ("bij,kj->ikb", (3, 48, 64), (40, 64)),
    ("abij,jiba->ab", (2, 3, 8, 9), (9, 8, 3, 2)),
    (" ij , jk -> ki", (0, 64), (64, 40)),
    (",i->i", (), (8,)),
]


@pytest.mark.parametrize(("subscripts", "a_shape", "b_shape"), CASES, ids=str)
def test_values_and_gradients(
    device: str, subscripts: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a, b = mx.random.normal(a_shape), mx.random.normal(b_shape)
    got = ane.einsum(subscripts, a, b, device=device)
    want = np.einsum(subscripts, exact(a), exact(b))
    assert got.shape == want.shape
    # Sums of products of both signs may cancel: relative to the operands' size.
    scale = np.einsum(subscripts, abs(exact(a)), abs(exact(b)))
    assert (abs(np.array(got) - want) <= TOLERANCE[device] * scale).all()
    dy = mx.random.normal(got.shape)
    _, ours = mx.vjp(lambda *x: ane.einsum(subscripts, *x, device=device), [a, b], [dy])
    _, mlx = mx.vjp(lambda *x: mx.einsum(subscripts, *x), [a, b], [dy])
    for x, y in zip(ours, mlx, strict=True):
        assert norm_error(x, exact(y)) <= 1e-5


def test_is_one_product_on_the_device(engine: str) -> None:
    q, k = mx.random.normal((2, 40, 3, 16)), mx.random.normal((2, 33, 3, 16))
    ane.reset_counters()
    mx.eval(ane.einsum("bqhd,bkhd->bhqk", q, k, device=engine))
    assert ane.counters()["matmul_calls"] == 1


def test_compile_and_vmap() -> None:
    a, b = mx.random.normal((4, 33, 8)), mx.random.normal((4, 8, 5))

    def product(a: mx.array, b: mx.array) -> mx.array:
        return ane.einsum("ij,jk->ki", a, b, device="cpu")

    want = np.einsum("bij,bjk->bki", exact(a), exact(b))
    assert norm_error(mx.vmap(product)(a, b), want) <= 1e-6
    assert norm_error(mx.compile(product)(a[0], b[0]), want[0]) <= 1e-6


@pytest.mark.parametrize(
    ("subscripts", "shape", "error", "message"),
    [
        ("ij,jk->il", (4, 8), ValueError, "need two operands of letters"),
        ("ij,jk->ii", (4, 8), ValueError, "a result that repeats none"),
        ("ij->ji", (4, 8), ValueError, "need two operands"),
        ("i1,1k->ik", (4, 8), ValueError, "of letters"),
        ("ij,jk,kl->il", (4, 8), ValueError, "of letters"),
        ("ijk,kl->il", (4, 8), ValueError, r"a has shape \(4, 8\), need one axis"),
        ("ij,jk->ik", (4, 7), ValueError, "label 'j' has size 7 in a and 8 in b"),
        ("ii,ij->j", (8, 8), NotImplementedError, "take diagonals before"),
        ("...ij,jk->...ik", (4, 8), NotImplementedError, "write out the axes"),
    ],
)
def test_what_is_refused(
    subscripts: str, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"\[mlx_ane.einsum\].*{message}"):
        ane.einsum(subscripts, mx.ones(shape), mx.ones((8, 6)), device="cpu")


def test_arrays_are_needed() -> None:
    with pytest.raises(ValueError, match=r"b is float, need mx.array"):
        ane.einsum("i,->i", mx.ones(3), 2.0, device="cpu")
