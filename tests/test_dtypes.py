"""Every dtype of every operand: results, values and refusals as MLX's."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import pytest
from cases import exact, norm_error
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn

import mlx_ane as ane

FLOATS = [mx.float32, mx.float16, mx.bfloat16]
WHOLE = [mx.bool_, mx.uint8, mx.int8, mx.int32, mx.uint32, mx.int64]
REAL = FLOATS + WHOLE
#: ||error|| / ||y|| of one rounding of the result, the engine's rounding above it.
ROUNDING = {mx.float32: 3e-3, mx.float16: 3e-3, mx.bfloat16: 8e-3}


def small(shape: tuple[int, ...], dtype: mx.Dtype, seed: int) -> mx.array:
    """Whole numbers that every dtype holds; 0 and 1 in bool."""
    values = mx.random.randint(0, 4, shape, key=mx.random.key(seed))
    return values.astype(dtype)


def same(
    ours: Callable[[], mx.array],
    plain: Callable[[], mx.array],
    bound: float | None = None,
) -> bool:
    """Whether both give one dtype and value; if not, both refuse."""
    try:
        expected = plain()
        mx.eval(expected)
    except ValueError:
        with pytest.raises(ValueError, match=r"\[mlx_ane\.[a-z_]+\] got .* need "):
            ours()
        return False
    got = ours()
    assert got.dtype == expected.dtype
    assert norm_error(got, exact(expected)) < (bound or ROUNDING[expected.dtype])
    return True


@given(
    x=st.sampled_from(REAL),
    weight=st.sampled_from(REAL),
    bias=st.sampled_from([None, *REAL]),
)
def test_linear(device: str, x: mx.Dtype, weight: mx.Dtype, bias: mx.Dtype) -> None:
    plain = nn.Linear(32, 24, bias is not None)
    plain.weight = small((24, 32), weight, 1)
    if bias is not None:
        plain.bias = small((24,), bias, 2)
    layer = ane.nn.ANELinear.from_linear(plain, device)
    values = small((40, 32), x, 3)
    if same(lambda: layer(values), lambda: plain(values)):
        got = ane.linear(values, plain.weight, plain.get("bias"), device=device)
        assert mx.array_equal(got, layer(values))


@given(a=st.sampled_from(REAL), b=st.sampled_from(REAL), batch=st.booleans())
def test_matmul_and_einsum(device: str, a: mx.Dtype, b: mx.Dtype, batch: bool) -> None:
    left = small((2, 40, 32) if batch else (40, 32), a, 1)
    right = small((32, 24), b, 2)
    same(lambda: ane.matmul(left, right, device=device), lambda: left @ right)
    rule = "bij,jk->bik" if batch else "ij,jk->ik"
    same(
        lambda: ane.einsum(rule, left, right, device=device),
        lambda: mx.einsum(rule, left, right),
    )


@given(x=st.sampled_from(REAL), table=st.sampled_from(FLOATS))
def test_as_linear(device: str, x: mx.Dtype, table: mx.Dtype) -> None:
    plain = nn.Embedding(24, 32)
    plain.weight = small((24, 32), table, 1)
    layer = ane.nn.ANEEmbedding.from_embedding(plain, device)
    values = small((40, 32), x, 2)
    assert same(lambda: layer.as_linear(values), lambda: plain.as_linear(values))


@given(
    mode=st.sampled_from([("affine", 32, 4), ("mxfp4", 32, 4), ("nvfp4", 16, 4)]),
    x=st.sampled_from(REAL),
    scales=st.sampled_from(FLOATS),
    biases=st.sampled_from(REAL),
    bias=st.sampled_from([None, *REAL]),
)
def test_quantized(
    device: str,
    mode: tuple[str, int, int],
    x: mx.Dtype,
    scales: mx.Dtype,
    biases: mx.Dtype,
    bias: mx.Dtype | None,
) -> None:
    name, group_size, bits = mode
    plain = nn.Linear(64, 24, bias=False).to_quantized(group_size, bits, name)
    if name == "affine":
        plain.scales = plain.scales.astype(scales)
        plain.biases = (4 * plain.biases).astype(biases)
    if bias is not None:
        plain.bias = small((24,), bias, 2)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    values = small((40, 64), x, 3)
    # MLX sums in bfloat16 and rounds before it adds the bias.
    bound = 3e-2 if mx.bfloat16 in (x, scales, biases) else 5e-3
    same(lambda: layer(values), lambda: plain(values), bound)


@pytest.mark.parametrize("x", REAL, ids=str)
def test_quantized_as_linear(device: str, x: mx.Dtype) -> None:
    plain = nn.Embedding(24, 64).to_quantized(32, 8)
    layer = ane.nn.ANEQuantizedEmbedding.from_quantized_embedding(plain, device)
    values = small((40, 64), x, 2)
    assert same(lambda: layer.as_linear(values), lambda: plain.as_linear(values))


def test_large_integers_promote_as_in_mlx(device: str) -> None:
    x = mx.full((40, 32), 100_000)  # inf in float16, as there
    weight = mx.ones((24, 32), mx.float16)
    got, expected = ane.linear(x, weight, device=device), x @ weight.T
    assert mx.array_equal(got, expected) and mx.all(mx.isinf(got)).item()


def test_gradients_of_the_other_operand(device: str) -> None:
    x = small((40, 32), mx.int32, 1)
    weight = mx.random.normal((24, 32))
    d = mx.random.normal((40, 24))

    def gradient(f: Callable[[mx.array], mx.array]) -> mx.array:
        return mx.grad(lambda w: (f(w) * d).sum())(weight)

    got = gradient(lambda w: ane.linear(x, w, device=device))
    assert norm_error(got, exact(gradient(lambda w: x @ w.T))) < 1e-6
    got = gradient(mx.compile(lambda w: ane.linear(x, w, device=device)))
    assert norm_error(got, exact(gradient(lambda w: x @ w.T))) < 1e-6


def test_a_converted_model_of_integers(device: str) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    pixels = mx.random.randint(0, 255, (40, 16)).astype(mx.uint8)
    expected = model(pixels)
    ane.convert(model, device=device)
    assert norm_error(model(pixels), exact(expected)) < 3e-3
    assert norm_error(mx.vmap(model)(pixels), exact(expected)) < 3e-3


@pytest.mark.parametrize("dtype", [mx.complex64, mx.float64], ids=str)
def test_refused_dtypes(device: str, dtype: mx.Dtype) -> None:
    with mx.stream(mx.cpu):
        odd, weight = mx.ones((4, 64), dtype=dtype), mx.ones((8, 64))
        message = f"of dtype {str(dtype)[9:]}, need float32, float16 or bfloat16"
        with pytest.raises(ValueError, match="x " + message):
            ane.linear(odd, weight, device=device)
        with pytest.raises(ValueError, match="bias " + message):
            ane.linear(weight, weight, mx.ones(8, dtype=dtype), device=device)
        with pytest.raises(ValueError, match="b " + message):
            ane.matmul(weight, odd.T, device=device)
        layer = ane.nn.ANEQuantizedLinear(64, 32, device=device)
        with pytest.raises(ValueError, match="x " + message):
            layer(odd)
