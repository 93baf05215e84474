"""Every operation of the emulated device against NumPy or SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.special
from mil_text import literal, program, type_of

from mlx_ane import emulated

Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    """One operation: its inputs, constant arguments and oracle."""

    op: str
    inputs: Arrays
    want: Any  # array, or tuple of arrays
    arguments: dict[str, Any] = field(default_factory=dict)
    operands: dict[str, Any] | None = None
    name: str = ""


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * scale).astype(np.float16)


def integers(low: int, high: int, *shape: int, dtype: type = np.int32) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


X = normal(2, 6, 3, 8)
Y = normal(2, 6, 3, 8, seed=1)
POSITIVE = np.abs(X) + np.float16(0.1)
UNIT = np.clip(X / 4, -0.9, 0.9)
I = integers(-20, 20, 3, 8)  # noqa: E741
J = integers(1, 9, 3, 8)
B = X > 0
C = Y > 0


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == np.float16 else x


def unary(op: str, f: Callable[..., Any], x: np.ndarray = X, **arguments: Any) -> Case:
    want = np.asarray(f(wide(x)))
    kept = x.dtype if want.dtype != bool else bool
    return Case(op, {"x": x}, want.astype(kept), arguments)


def binary(
    op: str, f: Callable[..., Any], x: np.ndarray = X, y: np.ndarray = Y
) -> Case:
    want = np.asarray(f(wide(x), wide(y)))
    return Case(
        op, {"x": x, "y": y}, want if want.dtype == bool else want.astype(x.dtype)
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


CHANNELS = normal(6, seed=3)
PER_CHANNEL = CHANNELS[:, None, None].astype(np.float64)

ELEMENTWISE = [
    binary("add", np.add),
    binary("add", np.add, I, J),
    binary("sub", np.subtract, X, Y[:, :, :1]),
    binary("sub", np.subtract, I, J),
    binary("mul", np.multiply, X, CHANNELS[:, None, None]),
    binary("mul", np.multiply, I, J),
    binary("real_div", np.divide, X, POSITIVE),
    binary("real_div", lambda a, b: (a / b).astype(int), I, J),
    binary("floor_div", np.floor_divide, X, POSITIVE),
    binary("floor_div", np.floor_divide, I, J),
    binary("mod", np.mod, I, J),
    binary("mod", np.mod, I.astype(np.float16), J.astype(np.float16)),
    binary("maximum", np.maximum),
    binary("minimum", np.minimum, X, Y[0, 0]),
    binary("pow", np.power, POSITIVE, Y),
    binary("pow", np.power, J, J % 4),
    binary("equal", np.equal, I, J),
    binary("not_equal", np.not_equal, I, J),
    binary("greater", np.greater),
    binary("greater_equal", np.greater_equal, I, J),
    binary("less", np.less),
    binary("less_equal", np.less_equal, I, J),
    binary("logical_and", np.logical_and, B, C),
    binary("logical_or", np.logical_or, B, C),
    binary("logical_xor", np.logical_xor, B, C),
    unary("abs", np.abs),
    unary("abs", np.abs, I),
    unary("acos", np.arccos, UNIT),
    unary("asin", np.arcsin, UNIT),
    unary("atan", np.arctan),
    unary("atanh", np.arctanh, UNIT),
    unary("ceil", np.ceil, X * 3),
    unary("clip", lambda x: np.clip(x, -0.5, 1.0), alpha=-0.5, beta=1.0),
    unary("cos", np.cos),
    unary("cosh", np.cosh),
    unary("erf", scipy.special.erf),
    unary("exp", np.exp),
    unary("exp2", np.exp2),
    unary("floor", np.floor, X * 3),
    unary("inverse", lambda x: 1 / (x + 0.5), POSITIVE, epsilon=0.5),
    unary("log", lambda x: np.log(x + 0.5), POSITIVE, epsilon=0.5),
    unary("logical_not", np.logical_not, B),
    unary("round", np.round, X * 3),
    unary("rsqrt", lambda x: 1 / np.sqrt(x), POSITIVE),
    unary("sign", np.sign),
    unary("sign", np.sign, I),
    unary("sin", np.sin),
    unary("sinh", np.sinh),
    unary("sqrt", np.sqrt, POSITIVE),
    unary("square", np.square),
    unary("square", np.square, I),
    unary("tan", np.tan, UNIT),
    unary("threshold", lambda x: np.maximum(x, 0.25), alpha=0.25),
    Case(
        "select",
        {"cond": B, "a": X, "b": Y[:, :1]},
        np.where(B, X, Y[:, :1]),
    ),
]

ACTIVATIONS = [
    unary("relu", lambda x: np.maximum(x, 0)),
    unary("relu6", lambda x: np.clip(x, 0, 6), X * 4),
    unary("leaky_relu", lambda x: np.where(x > 0, x, 0.25 * x), alpha=0.25),
    unary(
        "clamped_relu",
        lambda x: np.minimum(0.75, np.where(x > 0, x, 0.5 * x)),
        alpha=0.5,
        beta=0.75,
    ),
    unary("thresholded_relu", lambda x: np.where(x >= 0.5, x, 0), alpha=0.5),
    unary("elu", lambda x: np.where(x > 0, x, 0.5 * np.expm1(x)), alpha=0.5),
    unary("gelu", lambda x: x * scipy.special.ndtr(x), mode="EXACT"),
    unary(
        "gelu",
        lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        mode="TANH_APPROXIMATION",
    ),
    unary("gelu", lambda x: x * sigmoid(1.702 * x), mode="SIGMOID_APPROXIMATION"),
    unary("linear_activation", lambda x: 2 * x + 0.5, alpha=2.0, beta=0.5),
    unary("scaled_tanh", lambda x: 1.5 * np.tanh(0.5 * x), alpha=1.5, beta=0.5),
    unary("sigmoid", sigmoid),
    unary(
        "sigmoid_hard",
        lambda x: np.clip(0.25 * x + 0.5, 0, 1),
        alpha=0.25,
        beta=0.5,
    ),
    unary("silu", lambda x: x * sigmoid(x)),
    unary("softmax", lambda x: scipy.special.softmax(x, -1), axis=-1),
    unary("softmax", lambda x: scipy.special.softmax(x, 1), axis=1),
    unary("softplus", lambda x: np.logaddexp(0, x), X * 8),
    unary("softsign", lambda x: x / (1 + np.abs(x))),
    unary("tanh", np.tanh),
    Case(
        "prelu",
        {"x": X},
        np.where(X > 0, X, X * PER_CHANNEL).astype(np.float16),
        {"alpha": CHANNELS},
    ),
    Case(
        "softplus_parametric",
        {"x": X},
        (PER_CHANNEL * np.logaddexp(0, 0.5 * X)).astype(np.float16),
        {"alpha": CHANNELS, "beta": np.full(6, 0.5, np.float16)},
    ),
]


def reduction(op: str, f: Callable[..., Any], x: np.ndarray = X) -> list[Case]:
    cases = []
    for axes, keep in (([1], True), ([-1], False), ([0, 2], True), ([1, 2, 3], False)):
        axis = tuple(axes)
        want = f(wide(x), axis=axis, keepdims=keep).astype(x.dtype)
        cases.append(Case(op, {"x": x}, want, {"axes": axes, "keep_dims": keep}))
    return cases


def arg_reduction(op: str, f: Callable[..., Any]) -> list[Case]:
    return [
        Case(
            op,
            {"x": X},
            f(X, axis=axis, keepdims=keep).astype(np.int32),
            {"axis": axis, "keep_dims": keep},
        )
        for axis, keep in ((-1, False), (1, True))
    ]


def norm(x: np.ndarray, order: int, **where: Any) -> np.ndarray:
    return (np.abs(x) ** order).sum(**where) ** (1 / order)


REDUCTIONS = [
    *reduction("reduce_sum", np.sum),
    *reduction("reduce_mean", np.mean),
    *reduction("reduce_max", np.max),
    *reduction("reduce_min", np.min),
    *reduction("reduce_prod", np.prod, POSITIVE[:, :2]),
    *reduction("reduce_l1_norm", lambda x, **w: norm(x, 1, **w)),
    *reduction("reduce_l2_norm", lambda x, **w: norm(x, 2, **w)),
    *reduction("reduce_sum_square", lambda x, **w: (x**2).sum(**w)),
    *reduction("reduce_log_sum", lambda x, **w: np.log(x.sum(**w)), POSITIVE),
    *reduction("reduce_log_sum_exp", lambda x, **w: np.log(np.exp(x).sum(**w))),
    *arg_reduction("reduce_argmax", np.argmax),
    *arg_reduction("reduce_argmin", np.argmin),
    Case("reduce_sum", {"x": I}, I.sum(1).astype(np.int32), {"axes": [1]}),
]


def standardised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    x = x.astype(np.float64)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon)


def local_response(x: np.ndarray, size: int, alpha: float, beta: float) -> np.ndarray:
    x = x.astype(np.float64)
    sums = np.zeros_like(x)
    for c in range(x.shape[1]):
        low = max(c - size // 2, 0)
        sums[:, c] = (x[:, low : c - size // 2 + size] ** 2).sum(1)
    return x / (1 + alpha / size * sums) ** beta


BETA = normal(6, seed=4)
GAMMA8, BETA8 = normal(8, seed=5), normal(8, seed=6)
NORMALISATIONS = [
    Case(
        "batch_norm",
        {"x": X},
        ((X - PER_CHANNEL) / np.sqrt(0.5 + 0.25) * 2 + BETA[:, None, None]).astype(
            np.float16
        ),
        {
            "mean": CHANNELS,
            "variance": np.full(6, 0.5, np.float16),
            "gamma": np.full(6, 2, np.float16),
            "beta": BETA,
            "epsilon": 0.25,
        },
    ),
    Case(
        "instance_norm",
        {"x": X},
        (standardised(X, (2, 3), 0.25) * PER_CHANNEL + BETA[:, None, None]).astype(
            np.float16
        ),
        {"gamma": CHANNELS, "beta": BETA, "epsilon": 0.25},
    ),
    Case(
        "layer_norm",
        {"x": X},
        (standardised(X, (3,), 1e-5) * GAMMA8 + BETA8).astype(np.float16),
        {"axes": [-1], "gamma": GAMMA8, "beta": BETA8},
    ),
    Case(
        "layer_norm",
        {"x": X},
        standardised(X, (1, 2), 0.5).astype(np.float16),
        {"axes": [1, 2], "epsilon": 0.5},
    ),
    Case(
        "l2_norm",
        {"x": X},
        (
            X / np.sqrt((X.astype(float) ** 2).sum((1, 2, 3), keepdims=True) + 0.5)
        ).astype(np.float16),
        {"epsilon": 0.5},
    ),
    Case(
        "local_response_norm",
        {"x": X},
        local_response(X, 3, 0.5, 0.75).astype(np.float16),
        {"size": 3, "alpha": 0.5, "beta": 0.75},
    ),
]

A, W = normal(2, 3, 5, 16), normal(3, 16, 7, seed=7)
E = normal(2, 4, 3, 5).astype(np.float64)
MATMULS = [
    Case("matmul", {"x": A, "y": W}, A.astype(float) @ W.astype(float)),
    Case(
        "matmul",
        {"x": A, "y": W.transpose(0, 2, 1).copy()},
        A.astype(float) @ W.astype(float),
        {"transpose_x": False, "transpose_y": True},
    ),
    Case(
        "matmul",
        {"x": A.transpose(0, 1, 3, 2).copy(), "y": W},
        A.astype(float) @ W.astype(float),
        {"transpose_x": True, "transpose_y": False},
    ),
    Case("matmul", {"x": A, "y": W[0, :, 0].copy()}, A.astype(float) @ W[0, :, 0]),
    Case("matmul", {"x": A[0, 0, 0].copy(), "y": W}, A[0, 0, 0].astype(float) @ W),
    Case(
        "linear",
        {"x": A},
        A.astype(float) @ W[0] + GAMMA8[:7],
        {"weight": W[0].T.copy(), "bias": GAMMA8[:7]},
    ),
    Case(
        "einsum",
        {"a": normal(2, 4, 3, 5), "b": normal(2, 5, 3, 6, seed=2)},
        np.einsum("bmhk,bkhn->bnhm", E, normal(2, 5, 3, 6, seed=2)),
        {"equation": "bmhk,bkhn->bnhm"},
        {"values": ["a", "b"]},
    ),
    Case(
        "einsum",
        {"a": normal(2, 4, 3, 5), "b": normal(5, 6, seed=2)},
        np.einsum("nchw,wu->nchu", E, normal(5, 6, seed=2)),
        {"equation": "nchw,wu->nchu"},
        {"values": ["a", "b"]},
    ),
]


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: Any = 0) -> np.ndarray:
    q, k, v = (a.astype(float) for a in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        scores = np.where(mask, scores, -np.inf)
    else:
        scores = scores + mask
    return scipy.special.softmax(scores, -1) @ v


Q, K, V = normal(2, 3, 4, 8), normal(2, 3, 6, 8, seed=1), normal(2, 3, 6, 5, seed=2)
QKV = {"query": Q, "key": K, "value": V}
ADDED, ALLOWED = normal(4, 6, seed=3), np.tril(np.ones((4, 6), bool))
ATTENTION = [
    Case("scaled_dot_product_attention", QKV, attention(Q, K, V)),
    Case(
        "scaled_dot_product_attention",
        QKV | {"attn_mask": ADDED},
        attention(Q, K, V, ADDED),
    ),
    Case(
        "scaled_dot_product_attention",
        QKV | {"attn_mask": ALLOWED},
        attention(Q, K, V, ALLOWED),
    ),
]


def check(case: Case) -> None:
    """Run a case and compare shapes, dtypes and values."""
    wants = case.want if isinstance(case.want, tuple) else (case.want,)
    wants = tuple(
        w.astype(np.float16) if w.dtype == np.float64 else np.asarray(w) for w in wants
    )
    text = program(case.op, case.inputs, case.arguments, wants, case.operands)
    got = emulated.run(text, inputs=case.inputs)
    for i, want in enumerate(wants):
        y = got[f"y{i}"]
        assert y.shape == want.shape
        assert y.dtype == want.dtype
        if want.dtype == np.float16:
            np.testing.assert_allclose(
                y.astype(float), want.astype(float), rtol=2e-3, atol=2e-4
            )
        else:
            np.testing.assert_array_equal(y, want)


def name_of(case: Case) -> str:
    words = [
        f"{k}={v}" for k, v in case.arguments.items() if not isinstance(v, np.ndarray)
    ]
    return "-".join([case.op, case.name, *words])


CASES = ELEMENTWISE + ACTIVATIONS + REDUCTIONS + NORMALISATIONS + MATMULS + ATTENTION


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operation(case: Case) -> None:
    check(case)


def test_every_operation_has_a_case_and_a_page() -> None:
    from test_emulated_tensors import CASES as TENSOR_CASES
    from test_emulated_windows import CASES as WINDOW_CASES

    operations = emulated.operations()
    tested = {case.op for case in CASES + TENSOR_CASES + WINDOW_CASES}
    tested |= {"read_state", "coreml_update_state", "write_state"}  # test_states
    tested |= {"tensor_buffer_to_tensor", "tensor_to_tensor_buffer"}  # test_buffers
    assert sorted(set(operations) - tested) == []
    assert len(operations) >= 80
    pages = set(operations.values())
    assert len(pages) == len(operations)
    assert all(page.startswith(("iOS1", "splash")) for page in pages)


ROWS = (1, 2, 301, 40)
STEPS: dict[str, tuple[str, dict[str, str], dict[str, Any], tuple[int, ...]]] = {
    "a": ("abs", {"x": "x"}, {}, ROWS),
    "m": ("reduce_max", {"x": "a"}, {"axes": [3], "keep_dims": True}, (1, 2, 301, 1)),
    "d": ("real_div", {"x": "x", "y": "m"}, {}, ROWS),  # one value a row
    "w": ("mul", {"x": "d", "y": "g"}, {}, ROWS),  # one a column
    "k": ("add", {"x": "w", "y": "k0"}, {}, ROWS),  # the same for both planes
    "s": ("softmax", {"x": "k"}, {"axis": -1}, ROWS),
    "u": ("matmul", {"x": "s", "y": "ones"}, {}, (1, 2, 301, 1)),
    "n": ("sub", {"x": "s", "y": "u"}, {}, ROWS),
    "h": ("transpose", {"x": "n"}, {"perm": [0, 2, 1, 3]}, (1, 301, 2, 40)),
    "t": ("transpose", {"x": "n"}, {"perm": [0, 1, 3, 2]}, (1, 2, 40, 301)),
    "e": ("sigmoid", {"x": "t"}, {}, (1, 2, 40, 301)),
    "c": (
        "slice_by_size",
        {"x": "n"},
        {"begin": [0, 1, 0, 0], "size": [1, 1, 301, 40]},
        (1, 1, 301, 40),
    ),
    "z": ("mul", {"x": "c", "y": "k0"}, {}, (1, 1, 301, 40)),
    "q": ("add", {"x": "n", "y": "w"}, {}, ROWS),
}


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_steps_in_tiles_are_the_steps_one_by_one(numerics: str) -> None:
    """Rows are shared among threads, and several steps run on a few rows at a time."""
    given = {
        "x": normal(*ROWS),
        "g": normal(1, 1, 1, 40, seed=1),
        "k0": normal(1, 1, 301, 40, seed=2),
        "ones": np.ones((1, 1, 40, 1), np.float16),
    }
    values, lines = dict(given), []
    for name, (op, operands, constants, shape) in STEPS.items():
        alone = {k: values[v] for k, v in operands.items()}
        like = np.zeros(shape, np.float16)
        text = program(op, alone, constants, [like])
        (values[name],) = emulated.run(text, inputs=alone, numerics=numerics).values()
        passed = dict(operands)
        for key, value in constants.items():
            passed[key] = f"{name}_{key}"
            kind, written = literal(value)
            lines.append(
                f'{kind} {name}_{key}=const()[name=string("c"),val={written}];'
            )
        words = ", ".join(f"{k}={v}" for k, v in passed.items())
        lines.append(f'{type_of(like)} {name}={op}({words})[name=string("{name}")];')
    inputs = ", ".join(f"{type_of(a)} {k}" for k, a in given.items())
    text = (
        f"program(1.3)\n{{ func main<ios18>({inputs}) {{\n"
        + "\n".join(lines)
        + "\n} -> (e, h, z, q, u); }\n"
    )
    found = emulated.run(text, inputs=given, numerics=numerics)
    for name in ("e", "h", "z", "q", "u"):
        np.testing.assert_array_equal(found[name], values[name], err_msg=name)
