"""fast.scaled_dot_product_attention(): MLX's function, masks, sinks, gradients."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, exact, max_error, norm_error
from conftest import DEVICES
from hypothesis import given
from hypothesis import strategies as st

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


def test_reversed_and_repeated_rows(device: str) -> None:
    """No BLAS takes rows that run backwards, or one row for all."""
    q, k, v = arrays((1, 4, 2, 40, 72, 16, 16))
    k, v = k[:, :, ::-2], v[:, :, ::-2]
    like_mlx(device, {"q": q, "k": k, "v": v}, list("qkv"))
    k = mx.broadcast_to(k[:, :, :1], k.shape)
    like_mlx(device, {"q": q[:, :, ::-1], "k": k, "v": v}, list("qkv"))


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
        (dict.fromkeys("qkv", mx.ones((2, 2, 5, 8), mx.int32)), "int32"),
        ({"mask": mx.ones((1, 1, 1, 5, 7))}, "mask of shape"),
        ({"scale": "1"}, "scale is '1', need a number"),
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


# MLX's own function beside ours: every kind of mask, values and gradients.


def like_mlx(
    device: str,
    arrays: dict[str, mx.array],
    trained: list[str],
    mask: str | mx.array | None = None,
    scale: float = 0.25,
    loose: float = 1.0,
) -> None:
    """Ours equals MLX's in value and in the gradients of `trained`, NaN included."""
    dtype = mx.result_type(arrays["q"], arrays["k"], arrays["v"])
    dy = mx.random.normal((*arrays["q"].shape[:3], arrays["v"].shape[3])).astype(dtype)

    def run(function, **options) -> list[mx.array]:
        def call(*some: mx.array) -> mx.array:
            given = {**arrays, **dict(zip(trained, some, strict=True))}
            given = {"mask": mask, **given}
            q, k, v = (given.pop(name) for name in "qkv")
            return function(q, k, v, scale=scale, **given, **options)

        values, gradients = mx.vjp(call, [arrays[name] for name in trained], [dy])
        return values + gradients

    rounding = {mx.float32: 2e-5, mx.float16: 4e-3, mx.bfloat16: 3e-2}[dtype]
    tolerance = loose * max(rounding, 5e-3 if device != "cpu" else 0.0)
    ours, theirs = run(attention, device=device), run(mlx_attention)
    for name, got, want in zip(["out", *trained], ours, theirs, strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype, name
        got, want = exact(got), exact(want)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=name)
        got, want = np.nan_to_num(got), np.nan_to_num(want)
        # Sums that cancel to zero are measured by their terms, which are of size 1.
        error = np.linalg.norm(got - want)
        size = max(np.linalg.norm(want), 0.1 * np.sqrt(want.size))
        assert error <= tolerance * size, (name, error / (size or 1.0))


LOWEST = {d: mx.finfo(d).min for d in DTYPES}

#: What a mask adds to hidden scores; "lowest" is the dtype's own.
HIDING = ["lowest", -1e9, -1e4, -1000.0, -100.0, -math.inf]


def hiding_mask(rows: mx.array, value: float, dtype: mx.Dtype) -> mx.array:
    """0, and `value` where `rows` (broadcast to (40, 40)) is true."""
    return mx.where(mx.broadcast_to(rows, (40, 40)), value, 0.0).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", HIDING, ids=str)
@pytest.mark.parametrize("hidden", ["rows", "keys"])
def test_finite_masks(device: str, hidden: str, value, dtype: mx.Dtype) -> None:
    """A mask over a whole row: fp32 keeps no bits of a log-sum-exp of -1e9."""
    q, k, v = arrays((2, 4, 2, 40, 40, 16, 24), dtype)
    value = LOWEST[dtype] if value == "lowest" else value
    where = mx.arange(40) >= 25
    mask = hiding_mask(where[:, None] if hidden == "rows" else where, value, dtype)
    like_mlx(device, {"q": q, "k": k, "v": v}, list("qkv"), mask)
    sinks = mx.random.normal((4,)).astype(dtype)
    named = {"q": q, "k": k, "v": v, "sinks": sinks}
    like_mlx(device, named, ["q", "k", "v", "sinks"], mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sink", [0.5, 30.0, -math.inf, "lowest"], ids=lambda s: f"sink {s}"
)
@pytest.mark.parametrize("seen", [0.0, 0.6], ids=["none seen", "some seen"])
def test_boolean_masks_and_sinks(
    device: str, seen: float, sink: float | str, dtype: mx.Dtype
) -> None:
    """A row without a key averages them all, unless a sink takes its place."""
    q, k, v = arrays((1, 4, 4, 40, 33, 16, 16), dtype)
    mask = mx.random.uniform(shape=(1, 4, 40, 33)) < seen
    sinks = mx.full((4,), LOWEST[dtype] if sink == "lowest" else sink).astype(dtype)
    named = {"q": q, "k": k, "v": v}
    like_mlx(device, named, list("qkv"), mask)
    like_mlx(device, {**named, "sinks": sinks}, ["q", "k", "v", "sinks"], mask)


@pytest.mark.parametrize(("queries", "keys"), [(40, 25), (65, 130), (1, 9), (70, 70)])
def test_causal(device: str, queries: int, keys: int) -> None:
    """The first of more queries than keys see none."""
    q, k, v = arrays((1, 4, 2, queries, keys, 16, 16))
    like_mlx(device, {"q": q, "k": k, "v": v}, list("qkv"), "causal")
    named = {"q": q, "k": k, "v": v, "sinks": mx.random.normal((4,))}
    like_mlx(device, named, ["q", "k", "v", "sinks"], "causal")


#: Shapes that broadcast to (2, 4, 40, 33).
MASK_SHAPES = [
    (),
    (33,),
    (1,),
    (40, 1),
    (40, 33),
    (4, 1, 33),
    (1, 40, 33),
    (2, 1, 1, 33),
    (2, 1, 40, 33),
    (1, 4, 1, 1),
    (2, 4, 40, 33),
]


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks_broadcast(device: str, shape: tuple[int, ...]) -> None:
    q, k, v = arrays((2, 4, 2, 40, 33, 16, 16))
    named = {"q": q, "k": k, "v": v}
    like_mlx(device, named, list("qkv"), mx.random.uniform(shape=shape) < 0.6)
    like_mlx(device, named, list("qkv"), mx.random.normal(shape))
    # Transposed, and an integer.
    flipped = mx.random.normal(shape[::-1]).transpose()
    like_mlx(device, named, list("qkv"), flipped)
    like_mlx(device, named, list("qkv"), (3 * flipped).astype(mx.int32))


@pytest.mark.parametrize(
    "dtype", [mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.uint8], ids=str
)
def test_gradient_of_a_mask(device: str, dtype: mx.Dtype) -> None:
    q, k, v = arrays((2, 4, 2, 40, 33, 16, 16))
    mask = (3 * mx.random.uniform(shape=(4, 1, 33))).astype(dtype)
    loose = 1e3 if dtype in (mx.int32, mx.uint8) else 1.0  # truncated gradients
    named = {"q": q, "k": k, "v": v, "mask": mask, "sinks": mx.zeros((4,))}
    like_mlx(device, named, list(named), loose=loose)


@pytest.mark.parametrize("kind", ["finite", "boolean", "causal"])
def test_second_order_and_forward_mode(device: str, kind: str) -> None:
    q, k, v = arrays((1, 2, 1, 40, 36, 8, 8))
    rows = mx.broadcast_to(mx.arange(40)[:, None] < 9, (40, 36))
    mask = {
        "finite": mx.where(rows, LOWEST[mx.float32], 0.0),
        "boolean": mx.logical_not(rows),
        "causal": "causal",
    }[kind]

    def found(function, **options) -> list[mx.array]:
        def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            y = function(q, k, v, scale=0.3, mask=mask, **options)
            return (y**2).sum()

        def size(*a: mx.array) -> mx.array:
            return sum((g**2).sum() for g in mx.grad(loss, argnums=(0, 1, 2))(*a))

        _, tangents = mx.jvp(loss, [q, k, v], [v[:, :, :1] + 0 * q, k, v])
        return [*mx.grad(size, argnums=(0, 1, 2))(q, k, v), *tangents]

    for ours, theirs in zip(
        found(attention, device=device), found(mlx_attention), strict=True
    ):
        assert norm_error(ours, exact(theirs)) <= (1e-4 if device == "cpu" else 1e-2)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 4, 2, 40, 0, 8, 8),
        (2, 4, 2, 40, 33, 0, 8),
        (2, 4, 2, 40, 33, 8, 0),
        (2, 4, 2, 0, 33, 8, 8),
        (0, 4, 2, 40, 33, 8, 8),
        (2, 0, 1, 40, 33, 8, 8),
    ],
    ids=["T_kv", "D", "D_v", "T_q", "B", "heads"],
)
@pytest.mark.parametrize("mask", [None, "causal", "boolean"])
def test_empty_axes(device: str, shape: tuple[int, ...], mask: str | None) -> None:
    """No key gives zeros, no feature the average of v."""
    q, k, v = arrays(shape)
    if mask == "boolean":
        mask = mx.ones((shape[3], shape[4]), mx.bool_)
    like_mlx(device, {"q": q, "k": k, "v": v}, list("qkv"), mask)
    named = {"q": q, "k": k, "v": v, "sinks": mx.zeros((shape[1],))}
    like_mlx(device, named, ["q", "k", "v", "sinks"], mask)


@pytest.mark.parametrize("dtype", [mx.int32, mx.uint8, mx.bool_, mx.int64], ids=str)
@pytest.mark.parametrize("names", ["q", "k", "v", "kv", "mask", "sinks"])
def test_integers_promote(device: str, names: str, dtype: mx.Dtype) -> None:
    q, k, v = arrays((2, 4, 2, 40, 33, 16, 16), mx.float16)
    named = {"q": q, "k": k, "v": v}
    named |= {"mask": mx.random.normal((40, 33)), "sinks": mx.zeros((4,))}
    for name in [names] if names in named else list(names):
        named[name] = mx.random.randint(0, 3, named[name].shape).astype(dtype)
    for name in ("mask", "sinks"):
        if name != names:
            named[name] = named[name].astype(mx.float16)
    like_mlx(device, named, [])


def test_float64() -> None:
    q, k, v = (a.astype(mx.float64) for a in arrays((1, 2, 1, 5, 7, 4, 4)))
    got = attention(q, k, v, scale=0.5, mask="causal", device="cpu")
    assert got.dtype == mx.float64
    _, added = mask_of("causal", (1, 2, 1, 5, 7, 4, 4))
    wanted = expected(q, k, v, 0.5, added)
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("own", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("given", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mask", "sinks"])
def test_wider_types_are_refused(name: str, given: mx.Dtype, own: mx.Dtype) -> None:
    """As MLX does: a mask or sinks must promote to the type of q, k and v."""
    if given == own:
        pytest.skip("the same type")
    q, k, v = arrays(SHAPES[2], own)
    argument = {name: mx.zeros((40, 40) if name == "mask" else (4,), given)}
    with pytest.raises(ValueError, match="promote"):
        mlx_attention(q, k, v, scale=1.0, **argument)
    with pytest.raises(ValueError, match=rf"{name} of dtype .* promotes to theirs"):
        attention(q, k, v, scale=1.0, **argument)


def test_device_leaves_what_fp16_cannot_add(engine: str) -> None:
    """A row at -100 has no bits left for its scores; its sinks may take all."""
    q, k, v = arrays((1, 2, 2, 40, 40, 16, 16))
    mask = hiding_mask((mx.arange(40) < 9)[:, None], -100.0, mx.float32)
    got = attention(q, k, v, scale=0.25, mask=mask, device=engine)
    assert norm_error(got, expected(q, k, v, 0.25, exact(mask))) <= 1e-5
    assert ane.counters()["placed_out_of_range"] == 1
    nothing = mx.zeros((40, 40), mx.bool_)
    got = attention(
        q, k, v, scale=0.25, mask=nothing, sinks=mx.zeros((2,)), device=engine
    )
    assert mx.all(got == 0).item() and ane.counters()["device_calls"] == 1
    # The only keys with a value are hidden.
    padded = mx.where(mx.arange(40)[:, None] < 30, 0.0, v)
    got = attention(q, k, padded, scale=0.25, mask=mx.arange(40) < 30, device=engine)
    assert mx.all(got == 0).item() and ane.counters()["device_calls"] == 2


@given(data=st.data())
def test_like_mlx_for_any_arguments(data: st.DataObject) -> None:
    draw = data.draw
    device = draw(st.sampled_from(DEVICES))
    dtype = draw(st.sampled_from(DTYPES))
    groups, repeats = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch, features, values = (draw(st.integers(1, n)) for n in (2, 33, 33))
    queries, keys = draw(st.integers(1, 140)), draw(st.integers(1, 140))
    shape = (batch, groups * repeats, groups, queries, keys, features, values)
    mx.random.seed(draw(st.integers(0, 1000)))
    q, k, v = arrays(shape, dtype)
    if draw(st.booleans()):  # heads behind tokens, as models have them
        q, k, v = (mx.contiguous(a.swapaxes(1, 2)).swapaxes(1, 2) for a in (q, k, v))
    if draw(st.booleans()):
        k, v = (mx.repeat(a, 2, axis=2)[:, :, ::-2] for a in (k, v))
    named = {"q": q, "k": k, "v": v}
    full = (batch, groups * repeats, queries, keys)
    axes = [draw(st.sampled_from([1, n])) for n in full][draw(st.integers(0, 4)) :]
    hides = mx.random.uniform(shape=axes) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    value = draw(st.sampled_from([LOWEST[dtype], -1e9, -1e4, -3.0, 1.0]))
    mask = {
        "none": None,
        "causal": "causal",
        "boolean": mx.logical_not(hides),
        "added": mx.where(hides, value, 0.0).astype(dtype),
        "integer": mx.where(hides, -4, 1),
    }[draw(st.sampled_from(["none", "causal", "boolean", "added", "integer"]))]
    if draw(st.booleans()):
        named["sinks"] = mx.random.normal((groups * repeats,)).astype(dtype)
    like_mlx(device, named, list(named), mask, scale=draw(st.sampled_from([0.25, 0.1])))
