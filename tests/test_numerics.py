"""The stated bound of an engine's products holds for any finite operands.

docs/limits.md states the bound; `pytest -m slow` tries many more operands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, exact
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_ane as ane
from mlx_ane import _ext

pytestmark = pytest.mark.skipif(
    "emulated" not in __import__("conftest").DEVICES, reason="uses exact numerics"
)

#: Chips by how the engine is reported to accumulate, and the bound of each: M1 also
#: rounds sums of four products.
CHIPS = {"h13": 2**-8, "h14": 2**-9, "h15": 2**-9, "h16g": 2**-9, "h17s": 2**-9}
VIEWS = ("plain", "transposed", "sliced", "reversed")


@pytest.fixture(autouse=True)
def exact_numerics() -> Iterator[None]:
    yield
    ane.emulated.reset()


@dataclass(frozen=True)
class Operands:
    """What y (S, N) = x (S, K) @ weight (N, K).T is tried on."""

    chip: str
    high: bool
    s: int
    k: int
    n: int
    dtypes: tuple[mx.Dtype, mx.Dtype]
    views: tuple[str, str]
    #: log2 of the smallest and of the largest row of x and of weight.
    x_log2: tuple[int, int]
    w_log2: tuple[int, int]
    #: log2 of how much smaller elements of a row may be than its largest.
    spread: int
    zeros: float
    seed: int

    def arrays(self) -> tuple[mx.array, mx.array]:
        random = np.random.default_rng(self.seed)

        def array(rows: int, dtype: mx.Dtype, view: str, log2: tuple[int, int]):
            shape = (rows, self.k)
            scale = random.uniform(*sorted(log2), (rows, 1))
            scale = scale - random.uniform(0, self.spread, shape)
            values = random.uniform(-1, 1, shape) * np.exp2(scale)
            values[random.random(shape) < self.zeros] = 0
            most = 6e4 if dtype == mx.float16 else 3e38
            values = np.clip(values, -most, most)
            return strided(mx.array(values.astype(np.float32)).astype(dtype), view)

        return (
            array(self.s, self.dtypes[0], self.views[0], self.x_log2),
            array(self.n, self.dtypes[1], self.views[1], self.w_log2),
        )


def strided(values: mx.array, view: str) -> mx.array:
    """The same matrix as a view with the strides of this kind."""
    if view == "transposed":
        values = mx.contiguous(values.T).T
    elif view == "sliced":
        rows, k = values.shape
        room = mx.zeros((2 * rows + 1, k + 3), values.dtype)
        room[1::2, 2:-1] = values
        values = room[1::2, 2:-1]
    elif view == "reversed":
        values = mx.contiguous(values[::-1, ::-1])[::-1, ::-1]
    mx.eval(values)
    return values


def operands(high: bool = False) -> st.SearchStrategy[Operands]:
    # High precision needs an engine that accumulates wide.
    chips = [c for c in CHIPS if not high or c not in ("h13", "h15")]
    log2s = st.tuples(st.integers(-130, 128), st.integers(-130, 128))
    return st.builds(
        Operands,
        chip=st.sampled_from(chips),
        high=st.just(high),
        s=st.integers(1, 70),
        k=st.one_of(st.integers(1, 96), st.sampled_from([1343, 1345, 2000])),
        n=st.integers(1, 40),
        dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
        views=st.tuples(st.sampled_from(VIEWS), st.sampled_from(VIEWS)),
        x_log2=log2s,
        w_log2=log2s,
        spread=st.sampled_from([0, 8, 40]),
        zeros=st.sampled_from([0.0, 0.5, 0.98]),
        seed=st.integers(0, 2**32),
    )


def bound(x: np.ndarray, w: np.ndarray, case: Operands) -> np.ndarray:
    """Of |y - x @ w.T|, as docs/limits.md states it; x (S, K), w (N, K)."""
    k = x.shape[1]
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    products = abs(x) @ abs(w).T
    if not case.high:
        return CHIPS[case.chip] * products + k * 2.0**-26 * norms
    pieces = np.split(np.arange(k), depth_splits(k))
    partials = sum(abs(x[:, p] @ w[:, p].T) for p in pieces)
    return 2.0**-11 * partials + 2.0**-20 * products + 3 * k * 2.0**-26 * norms


def depth_splits(k: int) -> list[int]:
    """Where the K axis is cut."""
    tiles = _ext.planning.plan_matmul(64, k, 1, "h16g")["depth"]
    return [begin for begin, _, _ in tiles[1:]]


def check(case: Operands) -> None:
    ane.emulated.configure(chip=case.chip, numerics="exact")
    ane.clear_cache()
    ane.reset_counters()
    x, w = case.arrays()
    precision = "high" if case.high else "default"
    y = _ext.linear(x, w, device="emulated", precision=precision)
    got, x64, w64 = exact(y), exact(x), exact(w)
    # On the device, or a counted placement; a fallback would be an error.
    counts = ane.counters()
    assert counts["device_calls"] + counts["placed_few_rows"] == 1
    assert counts["placed_few_rows"] == (case.s < 32)

    products, expected = abs(x64) @ abs(w64).T, x64 @ w64.T
    rounding = {mx.float32: 2.0**-23, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
    least = {mx.float32: 2.0**-126, mx.float16: 2.0**-24, mx.bfloat16: 2.0**-126}
    most = 1.01 * bound(x64, w64, case)
    most += rounding[y.dtype] * abs(expected) + least[y.dtype]
    # Where sums of |products| and the bound leave the range of y, so may y.
    top = 65504.0 if y.dtype == mx.float16 else float(np.finfo(np.float32).max)
    inside = products + most < top
    assert np.isfinite(got[inside]).all()
    assert (abs(got - expected)[inside] <= most[inside]).all()


@given(operands())
@settings(max_examples=60)
def test_any_finite_operands(case: Operands) -> None:
    check(case)


@given(operands(high=True))
@settings(max_examples=40)
def test_precision_high(case: Operands) -> None:
    check(case)


@pytest.mark.slow
@given(st.one_of(operands(), operands(high=True)))
@settings(max_examples=5000, derandomize=False)
def test_many_finite_operands(case: Operands) -> None:
    check(case)
