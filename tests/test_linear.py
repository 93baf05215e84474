"""Forward of linear(): values, views, dtypes, transforms, extreme magnitudes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import (
    CASES,
    DTYPES,
    TOLERANCE,
    Case,
    exact,
    max_error,
    norm_error,
    reference,
)
from hypothesis import given
from hypothesis import strategies as st

import mlx_ane as ane
from mlx_ane import _ext


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_matches_float64(case: Case, device: str) -> None:
    x, weight, bias = case.arrays()
    y = ane.linear(x, weight, bias, device=device)
    assert y.dtype == mx.float32
    assert y.shape == (*case.x[:-1], case.n)
    assert norm_error(y, reference(x, weight, bias)) <= TOLERANCE[device]


@pytest.mark.parametrize("layout", ["natural", "channels_first"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_engines_in_both_layouts(case: Case, layout: str, engine: str) -> None:
    _ext.set_layout(layout)
    _ext.set_min_rows(1)
    x, weight, bias = case.arrays()
    y = ane.linear(x, weight, bias, device=engine)
    assert norm_error(y, reference(x, weight, bias)) <= TOLERANCE[engine]
    assert _ext.planning.plan_matmul(64, 64, 64, "M4")["layout"] == layout


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", CASES[:4] + CASES[-3:], ids=str)
def test_half_types_are_no_further_from_float64_than_mlx(
    case: Case, dtype: mx.Dtype
) -> None:
    x, weight, bias = case.arrays(dtype)
    expected = reference(x, weight, bias)
    got = ane.linear(x, weight, bias, device="cpu")
    mlx = x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)
    assert got.dtype == dtype
    assert norm_error(got, expected) <= norm_error(mlx, expected) * 1.01 + 1e-9


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types_on_engines(dtype: mx.Dtype, engine: str) -> None:
    x, weight, bias = CASES[1].arrays(dtype)
    y = ane.linear(x, weight, bias, device=engine)
    assert y.dtype == dtype
    rounding = 5e-4 if dtype == mx.float16 else 4e-3
    assert norm_error(y, reference(x, weight, bias)) <= 2e-3 + rounding


@pytest.mark.parametrize(
    ("x_type", "w_type", "b_type"),
    [
        (mx.float16, mx.float32, mx.float32),
        (mx.bfloat16, mx.float16, mx.float16),
        (mx.float16, mx.float16, mx.float32),
        (mx.bfloat16, mx.bfloat16, mx.float16),
    ],
    ids=str,
)
def test_result_type_is_mlx_promotion(
    x_type: mx.Dtype, w_type: mx.Dtype, b_type: mx.Dtype, device: str
) -> None:
    x, weight, bias = CASES[0].arrays()
    x, weight, bias = x.astype(x_type), weight.astype(w_type), bias.astype(b_type)
    y = ane.linear(x, weight, bias, device=device)
    assert y.dtype == mx.addmm(bias, x, weight.T).dtype
    assert norm_error(y, reference(x, weight, bias)) <= 1e-2


def test_engines_run_on_the_device_and_few_rows_on_the_blas(engine: str) -> None:
    x, weight, bias = CASES[0].arrays()
    mx.eval(ane.linear(x, weight, bias, device=engine))
    assert ane.counters()["device_calls"] >= 1
    assert ane.counters()["placed_few_rows"] == 0
    ane.reset_counters()
    mx.eval(ane.linear(x[:31], weight, bias, device=engine))
    assert ane.counters()["device_calls"] == 0
    assert ane.counters()["placed_few_rows"] == 1


def test_device_cpu_is_counted(device: str) -> None:
    x, weight, bias = CASES[0].arrays()
    mx.eval(ane.linear(x, weight, bias, device=device))
    counts = ane.counters()
    assert counts["linear_calls"] == 1
    assert counts["placed_device_cpu"] == (1 if device == "cpu" else 0)


@pytest.mark.parametrize("shapeless", [False, True])
def test_compile(device: str, shapeless: bool) -> None:
    x, weight, bias = CASES[0].arrays()

    def model(x: mx.array) -> mx.array:
        return mx.tanh(ane.linear(mx.abs(x), weight, bias, device=device)) + 1.0

    compiled = mx.compile(model, shapeless=shapeless)
    assert mx.array_equal(compiled(x), model(x))
    longer = mx.concatenate([x, x])
    assert compiled(longer).shape == (128, 64)
    assert mx.array_equal(compiled(longer), model(longer))


def test_compile_does_not_merge_layers_with_other_options(engine: str) -> None:
    x, weight, _ = CASES[0].arrays()

    @mx.compile
    def both(x: mx.array) -> tuple[mx.array, mx.array]:
        on_engine = ane.linear(x, weight, device=engine)
        on_cpu = ane.linear(x, weight, device="cpu")
        return 2.0 * on_engine, 3.0 * on_cpu  # outputs themselves never merge

    on_engine, on_cpu = both(x)
    expected = reference(x, weight, None)
    assert max_error(on_cpu / 3.0, expected) <= 1e-5
    assert max_error(on_engine / 2.0, expected) > 1e-5


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (0, 0), (2, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_vmap(device: str, axes: tuple[int | None, int | None], bias: bool) -> None:
    x_axis, w_axis = axes
    x = mx.random.normal((36, 36, 36))
    w = mx.random.normal((36, 36, 36)) / 6
    x = x if x_axis is not None else x[0]
    w = w if w_axis is not None else w[0]
    b = mx.random.normal((36,)) if bias else None

    def product(x: mx.array, w: mx.array) -> mx.array:
        return ane.linear(x, w, b, device=device)

    def plain(x: mx.array, w: mx.array) -> mx.array:
        return x @ w.T + (b if b is not None else 0.0)

    got = mx.vmap(product, in_axes=axes)(x, w)
    expected = exact(mx.vmap(plain, in_axes=axes)(x, w))
    assert norm_error(got, expected) <= TOLERANCE[device]


def test_vmap_over_the_bias(device: str) -> None:
    x, weight, _ = CASES[0].arrays()
    biases = mx.random.normal((5, 64))
    got = mx.vmap(lambda b: ane.linear(x, weight, b, device=device))(biases)
    expected = reference(x, weight, None)[None] + exact(biases)[:, None]
    assert norm_error(got, expected) <= TOLERANCE[device]


def test_jvp(device: str) -> None:
    x, weight, bias = CASES[1].arrays()
    tangents = [mx.random.normal(a.shape) for a in (x, weight, bias)]
    _, (got,) = mx.jvp(
        lambda *a: ane.linear(*a, device=device), [x, weight, bias], tangents
    )
    dx, dw, db = map(exact, tangents)
    expected = dx @ exact(weight).T + exact(x) @ dw.T + db
    assert max_error(got, expected) <= 1e-5


def test_one_huge_element_leaves_other_rows_as_accurate(engine: str) -> None:
    x, weight, _ = CASES[1].arrays()
    expected = reference(x, weight, None)
    without = ane.linear(x, weight, device=engine)
    x[3, 7] = 6e4
    with_it = ane.linear(x, weight, device=engine)
    others = np.arange(48) != 3
    assert norm_error(exact(with_it)[others], expected[others]) <= 1.01 * norm_error(
        exact(without)[others], expected[others]
    )
    assert norm_error(with_it, reference(x, weight, None)) <= 2e-3


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1e3, 1e6, 1e18])
def test_magnitudes_far_beyond_fp16(engine: str, magnitude: float) -> None:
    x, weight, _ = CASES[1].arrays()
    for scaled in ((x * magnitude, weight), (x, weight * magnitude)):
        y = ane.linear(*scaled, device=engine)
        assert norm_error(y, reference(*scaled, None)) <= 2e-3


def test_beyond_the_cliff_is_right(engine: str) -> None:
    x = mx.full((64, 1024), 200.0)
    weight = mx.full((32, 1024), 100.0)  # sums of 2e7; the engine's end is 32752
    y = ane.linear(x, weight, device=engine)
    assert max_error(y, reference(x, weight, None)) <= 2e-3
    assert ane.counters()["device_calls"] >= 1


@pytest.mark.parametrize("name", ["zero W", "zero x", "zero rows", "relu", "zero both"])
def test_zeros_raise_no_alarm(engine: str, name: str) -> None:
    x, weight, bias = CASES[1].arrays()
    if name in ("zero W", "zero both"):
        weight = mx.zeros_like(weight)
    if name in ("zero x", "zero both"):
        x = mx.zeros_like(x)
    if name == "zero rows":
        x[::2] = 0.0
        weight[::3] = 0.0
    if name == "relu":
        x = mx.maximum(x - 1.5, 0.0)
    y = ane.linear(x, weight, bias, device=engine)
    assert norm_error(y, reference(x, weight, bias)) <= 2e-3
    assert not [k for k, n in ane.counters().items() if k.startswith("fallback") and n]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_input_is_not_the_devices_fault(device: str, value: float) -> None:
    x, weight, bias = CASES[1].arrays()
    clean = reference(x, weight, bias)
    x[5, 9] = value
    y = exact(ane.linear(x, weight, bias, device=device))
    others = np.arange(48) != 5
    assert not np.isfinite(y[5]).any()
    assert norm_error(y[others], clean[others]) <= TOLERANCE[device]
    assert not [k for k, n in ane.counters().items() if k.startswith("fallback") and n]


def test_precision(engine: str) -> None:
    x, weight, bias = CASES[1].arrays()
    want = reference(x, weight, bias)
    errors, on_device = {}, {}
    for precision in (None, "default", "high", "exact"):
        ane.reset_counters()
        y = ane.linear(x, weight, bias, device=engine, precision=precision)
        errors[precision] = norm_error(y, want)
        on_device[precision] = ane.counters()["device_calls"]
    assert on_device == {None: 1, "default": 1, "high": 1, "exact": 0}
    assert errors[None] == errors["default"] > errors["high"] > errors["exact"]
    assert errors["high"] <= 4e-4
    assert errors["exact"] <= TOLERANCE["cpu"]
    with pytest.raises(ValueError, match="precision is 'fp32', need one of 'default'"):
        ane.linear(x, weight, device=engine, precision="fp32")


def test_other_default_device_changes_nothing(device: str) -> None:
    x, weight, bias = CASES[0].arrays()
    ane.set_default_device(device)
    assert mx.array_equal(
        ane.linear(x, weight, bias), ane.linear(x, weight, bias, device=device)
    )


@given(
    rows=st.integers(0, 80),
    k=st.integers(1, 90),
    n=st.integers(1, 90),
    x_view=st.sampled_from(["plain", "transposed", "sliced", "reversed"]),
    w_view=st.sampled_from(["plain", "transposed", "sliced", "reversed"]),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-8, 12),
)
def test_any_shape_view_and_magnitude(
    device: str,
    rows: int,
    k: int,
    n: int,
    x_view: str,
    w_view: str,
    dtype: mx.Dtype,
    exponent: int,
) -> None:
    case = Case(f"{rows} {k} {n}", (rows, k), n, True, x_view, w_view)
    x, weight, bias = case.arrays(dtype)
    x = x * 2.0**exponent
    expected = reference(x, weight, bias)
    y = ane.linear(x, weight, bias, device=device)
    rounding = {mx.float32: 0.0, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    assert norm_error(y, expected) <= TOLERANCE[device] + rounding
