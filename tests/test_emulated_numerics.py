"""The reported numerics: each figure of the reports, through whole programs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from mil_text import program

from mlx_ane import emulated


def dot(
    x: list[float], w: list[float], chip: str = "h16g", numerics: str = "exact"
) -> float:
    """x . w as a 1x1 convolution of one pixel, as the M6 study measured it."""
    a = np.array(x, np.float16).reshape(1, -1, 1, 1)
    weight = np.array(w, np.float16).reshape(1, -1, 1, 1)
    y = np.zeros((1, 1, 1, 1), np.float16)
    text = program("conv", {"x": a, "weight": weight}, {}, [y])
    inputs = {"x": a, "weight": weight}
    got = emulated.run(text, inputs=inputs, chip=chip, numerics=numerics, limits="off")
    return float(got["y0"].reshape(()))


def elementwise(
    op: str,
    x: np.ndarray,
    chip: str = "h16g",
    numerics: str = "exact",
    **arguments: object,
) -> np.ndarray:
    text = program(op, {"x": x}, arguments, [x])
    return emulated.run(text, inputs={"x": x}, chip=chip, numerics=numerics)["y0"]


FIXED = ["h14", "h16", "h16g", "h17", "h17s", "h18g"]
ONES = [1.0] * 4096


@pytest.mark.parametrize("chip", FIXED)
def test_overflow_is_sticky(chip: str) -> None:
    assert dot([256, 256], [128, -128], chip) == np.inf
    assert dot([-256, 256], [128, 128], chip) == -np.inf
    assert dot([255, 255], [128, -128], chip) == 0
    assert dot([256, 256], [128, -128], chip, "fast") == 0


def test_outputs_end_at_32752() -> None:
    assert dot([32752, 9], [1, 1], "h16g") == 32768
    for chip in ("h14", "h17s"):
        assert dot([32752, 9], [1, 1], chip) == np.inf
        assert dot([32752, 7], [1, 1], chip) == 32752
    assert dot([32752, 9], [1, 1], "h14", "fast") == 32768


def test_products_are_dropped_or_rounded_half_away() -> None:
    assert dot([1.5 * 2**-8], [1.5 * 2**-9]) == 0  # exponents add up to -17
    assert dot([1.5 * 2**-8], [1.5 * 2**-8]) == 2 * 2**-16  # 2.25 units
    assert dot([1.5 * 2**-8], [-(2.0**-8)]) == -2 * 2**-16  # -1.5 units
    assert dot([2**-15], [0.25]) == 2**-16  # a denormal counts as 2^-14
    assert dot([2**-15], [0.125]) == 0
    assert dot([1.5 * 2**-8], [1.5 * 2**-9], numerics="fast") == 2.25 * 2**-17


def test_results_round_half_away_from_zero() -> None:
    assert dot([2048, 1], [1, 1]) == 2050
    assert dot([-2048, -1], [1, 1]) == -2050
    assert dot([2048, 1], [1, 1], numerics="fast") == 2048
    assert np.copysign(1, dot([-0.0], [1])) == 1
    assert dot([1 - 4095.0, *ONES[1:]], ONES) == 1  # no fp16 partial sums


def test_bias_starts_the_accumulator() -> None:
    x, w = np.full((1, 2, 1, 1), 16, np.float16), np.array([[1, -1]], np.float16)
    bias, y = np.array([32752], np.float16), np.zeros((1, 1, 1, 1), np.float16)
    arguments = {"weight": w.reshape(1, 2, 1, 1), "bias": bias}
    text = program("conv", {"x": x}, arguments, [y])
    assert emulated.run(text, inputs={"x": x}, numerics="exact")["y0"] == np.inf
    assert emulated.run(text, inputs={"x": -x}, numerics="exact")["y0"] == 32752


def test_m3_ultra() -> None:
    assert dot([256, 1], [128, 1], "h15g") == 0  # 2^15 reached: zero
    assert dot([2**-7], [2**-7], "h15") == 2**-14
    assert dot([2**-7], [1.5 * 2**-8], "h15") == 0  # below 6.1e-5
    assert dot([2048, 1], [1, 1], "h15") == 2050
    third = np.float16(1 / 3)
    assert dot([third], [third], "h15") == float(third * third)  # fp16 products


def test_m1_sums_groups_of_four_in_fp16() -> None:
    assert dot([2048, 1, 0, 0], [1, 1, 1, 1], "h13") == 2048
    assert dot([2048, 0, 0, 0, 1, 1], [1] * 6, "h13") == 2050


@pytest.mark.parametrize("chip", ["h13", "h15", *FIXED])
def test_no_nan_comes_out_of_products(chip: str) -> None:
    assert dot([np.inf], [0.25], chip) == 16384  # inf decodes as 2^16
    assert dot([np.nan], [0.125], chip) >= 8192
    assert dot([np.inf, -np.inf], [0.0, 0.125], chip) == -8192
    assert np.isnan(dot([np.nan], [1.0], chip, "fast"))


@pytest.mark.parametrize(
    ("op", "f", "bound"),
    [
        ("sigmoid", scipy.special.expit, 3.4e-3),
        ("tanh", np.tanh, 1.6e-3),
        ("gelu", lambda x: x * scipy.special.ndtr(x), 6e-3),
        ("silu", lambda x: x * scipy.special.expit(x), 1.5e-2),
    ],
)
def test_tables(op: str, f: Callable[[np.ndarray], np.ndarray], bound: float) -> None:
    x = np.linspace(-12, 12, 49152).astype(np.float16).reshape(1, 1, -1, 32)
    want = f(x.astype(np.float64))
    rounding = 2.0**-11 * np.maximum(np.abs(want), 2.0**-14)
    error = np.abs(elementwise(op, x).astype(float) - want) - rounding
    assert error.max() <= bound
    assert error.max() >= bound / 2  # a table, not the function
    fast = np.abs(elementwise(op, x, numerics="fast").astype(float) - want)
    assert (fast <= rounding * 1.01).all()


@pytest.mark.parametrize(
    ("op", "f"), [("sqrt", np.sqrt), ("rsqrt", lambda x: 1 / np.sqrt(x))]
)
def test_roots_are_within_two_ulp(
    op: str, f: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16)
    x = np.resize(x, (1, 1, 992, 32))
    with np.errstate(over="ignore"):
        want = f(x.astype(np.float64)).astype(np.float16)
    got = elementwise(op, x)
    if op == "rsqrt":  # epsilon 1e-12 shows below 2^-20
        got, want = got[x > 2**-14], want[x > 2**-14]
    ulps = got.view(np.int16).astype(int) - want.view(np.int16).astype(int)
    assert np.abs(ulps).max() <= 2


def test_reduce_sum_is_narrow_and_matmul_wide() -> None:
    x = np.ones((1, 1, 1, 4096), np.float16)
    y = np.zeros((1, 1, 1, 1), np.float16)
    text = program("reduce_sum", {"x": x}, {"axes": [3], "keep_dims": True}, [y])
    assert emulated.run(text, inputs={"x": x}, numerics="exact")["y0"] == 2048
    assert emulated.run(text, inputs={"x": x})["y0"] == 4096
    assert dot(ONES, ONES) == 4096


def test_elementwise_keeps_range_and_denormals() -> None:
    x = np.array([65504, -65504, 2.0**-24, -(2.0**-24), np.inf], np.float16)
    y = elementwise("relu", np.resize(x, (1, 1, 1, 5)))
    np.testing.assert_array_equal(y.reshape(-1), [65504, 0, 2.0**-24, 0, np.inf])
    text = program("add", {"x": x, "y": x}, {}, [x])
    doubled = emulated.run(text, inputs={"x": x, "y": x}, numerics="exact")["y0"]
    np.testing.assert_array_equal(
        doubled, [np.inf, -np.inf, 2.0**-23, -(2.0**-23), np.inf]
    )


def test_softplus_is_lost_above_ten() -> None:
    x = np.array([[1, 9, 12]], np.float16)
    y = elementwise("softplus", x)
    np.testing.assert_allclose(y[0, :2], np.logaddexp(0, x[0, :2]), rtol=1e-3)
    assert y[0, 2] == np.inf
    assert elementwise("softplus", x, numerics="fast")[0, 2] == 12


def test_shifted_slices_saturate_on_m1_and_m2() -> None:
    x = np.array([[1, 4094, 5000, -5000]], np.float16)
    y = x[:, 1:].copy()
    arguments = {"begin": [0, 1], "size": [1, 3]}
    text = program("slice_by_size", {"x": x}, arguments, [y])

    def run(chip: str, numerics: str = "exact") -> list[float]:
        return emulated.run(
            text, inputs={"x": x}, chip=chip, numerics=numerics, limits="off"
        )["y0"][0].tolist()

    for chip in ("h13", "h14g"):
        assert run(chip) == [4094, np.inf, -np.inf]
        assert run(chip, "fast") == [4094, 5000, -5000]
    for chip in ("h15", "h16g"):
        assert run(chip) == [4094, 5000, -5000]
    whole = program("slice_by_size", {"x": x}, {"begin": [0, 0], "size": [1, 4]}, [x])
    got = emulated.run(whole, inputs={"x": x}, chip="h14", numerics="exact")
    assert got["y0"].tolist() == x.tolist()


halves = st.floats(-4, 4, width=16)


@given(st.lists(st.tuples(halves, halves), min_size=1, max_size=40))
def test_fast_and_exact_differ_by_rounding_only(
    pairs: list[tuple[float, float]],
) -> None:
    x, w = map(list, zip(*pairs, strict=True))
    exact = dot(x, w)
    wide = float(np.dot(x, w))
    # A product is off by 2^-15 (dropped) at most, the result by half an ulp.
    bound = len(x) * 2.0**-15 + max(abs(wide), abs(exact)) * 2.0**-11
    assert abs(exact - wide) <= bound
    assert abs(dot(x, w, numerics="fast") - wide) <= abs(wide) * 2.0**-10 + 1e-6


def test_every_operation_rounds_to_fp16() -> None:
    x = np.full((1, 32), 1 + 2.0**-10, np.float16)
    kind = "tensor<fp16, [1, 32]>"
    text = (
        "program(1.3)\n[buildInfo = dict<string, string>({})]\n{\n"
        f"func main<ios18>({kind} x) {{\n"
        f'{kind} a = mul(x=x, y=x)[name=string("a")];\n'
        f'{kind} y = sub(x=a, y=x)[name=string("y")];\n'
        "} -> (y);\n}"
    )
    want = x * x - x
    assert emulated.run(text, inputs={"x": x})["y"].tolist() == want.tolist()
    exact = (x.astype(float) ** 2 - x).astype(np.float16)
    assert want.tolist() != exact.tolist()
