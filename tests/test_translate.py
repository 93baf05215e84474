"""Translation: programs against MLX in fp32, on the emulated engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from blocks import BLOCKS, Layer, error, exact, llama, make, plain
from mlx import nn

from mlx_ane import emulated, mil
from mlx_ane.block import Block
from mlx_ane.builder import FORMS
from mlx_ane.capture import capture, lowered
from mlx_ane.tape import Node, Tape, Type, Unsupported
from mlx_ane.translate import PRIMITIVES, translate

CHIPS = ["h13", "h14", "h15", "h16g", "h17s", "h18g"]  # M1 to M6
X = (2, 64, 64)

A, B = "ab"  # inputs of (2, 64, 48)
FLOAT = mx.float32
COARSE = 0.25  # fp16 holds its multiples: nothing rounds over an edge
TABLE = mx.array(
    np.round(np.random.default_rng(0).standard_normal((64, 48)) / COARSE) * COARSE,
    dtype=FLOAT,
)
EDGES = (
    "Greater GreaterEqual Less LessEqual Equal NotEqual Round Floor Ceil Sign".split()
)
#: One row a primitive: arguments, inputs (names or constants), shapes of the outputs.
ROWS: dict[str, tuple[tuple[Any, ...], list[Any], list[tuple[int, ...]]]] = {
    **dict.fromkeys(
        "Abs Cos Erf Expm1 Exp Negative Round Sigmoid Sign Sin Square Tanh Floor Ceil "
        "Copy Contiguous StopGradient Softmax".split(),
        ((), [A], [(2, 64, 48)]),
    ),
    **dict.fromkeys(
        "Add Subtract Multiply Maximum Minimum LogAddExp Depends".split(),
        ((), [A, B], [(2, 64, 48)]),
    ),
    **dict.fromkeys(
        "Greater GreaterEqual Less LessEqual Equal NotEqual".split(),
        ((), [A, TABLE], [(2, 64, 48)]),
    ),
    "Divide": ((), [A, mx.abs(TABLE) + 0.5], [(2, 64, 48)]),
    "Power": ((), [A, mx.array(3.0)], [(2, 64, 48)]),
    "Matmul": ((), [A, TABLE.T], [(2, 64, 64)]),
    "AddMM": ((0.5, 2.0), [A, TABLE.T, mx.ones((64,))], [(2, 64, 64)]),
    "Select": ((), [TABLE > 0, A, B], [(2, 64, 48)]),
    "LogicalNot": ((), [TABLE > 0], [(64, 48)]),
    "LogicalAnd": ((), [TABLE > 0, TABLE > 1], [(64, 48)]),
    "LogicalOr": ((), [TABLE > 0, TABLE > 1], [(64, 48)]),
    "AsType": ((mx.float16,), [A], [(2, 64, 48)]),
    "Log": ((2,), ["positive"], [(2, 64, 48)]),
    "Log1p": ((), ["positive"], [(2, 64, 48)]),
    "Sqrt": ((True,), ["positive"], [(2, 64, 48)]),
    "LogSumExp": ((), [A], [(2, 64, 1)]),
    "Broadcast": (((3, 2, 64, 48),), [A], [(3, 2, 64, 48)]),
    "BroadcastAxes": (((3, 2, 64, 48),), [A], [(3, 2, 64, 48)]),
    "Full": (((64, 48),), [mx.array(2.0)], [(64, 48)]),
    "Reshape": (((2, 48, 64),), [A], [(2, 48, 64)]),
    "Flatten": ((0, 1), [A], [(128, 48)]),
    "Unflatten": ((1, (4, 16)), [A], [(2, 4, 16, 48)]),
    "ExpandDims": (([1],), [A], [(2, 1, 64, 48)]),
    "Squeeze": (([0],), ["one"], [(64, 48)]),
    "Transpose": (([0, 2, 1],), [A], [(2, 48, 64)]),
    "Reduce": ((2, [1, 2]), [A], [(2, 1, 1)]),
    "Scan": ((2, 1, False, True), [A], [(2, 64, 48)]),
    "Slice": (((0, 8, 16), (2, 40, 48), (1, 2, 1)), [A], [(2, 16, 32)]),
    "Split": (([16], 2), [A], [(2, 64, 16), (2, 64, 32)]),
    "Concatenate": ((2,), [A, B], [(2, 64, 96)]),
    "Pad": (([1], [2], [6]), [A, mx.array(0.0)], [(2, 72, 48)]),
    "SliceUpdate": (
        ((0, 0, 8), (2, 64, 40), (1, 1, 1)),
        [B, "part"],
        [(2, 64, 48)],
    ),
    "Gather": (([1], (2, 1, 48)), [A, mx.array([5, 1, 1])], [(3, 2, 1, 48)]),
}


def tape_of(name: str) -> tuple[Tape, list[mx.array]]:
    """A tape of one primitive; a sum with an input keeps constants in the program."""
    arguments, inputs, outputs = ROWS[name]
    x = mx.random.normal((2, 64, 48))
    if name in EDGES:
        x = mx.round(x / COARSE) * COARSE
    given = {
        A: x,
        B: mx.random.normal((2, 64, 48)),
        "positive": mx.abs(x) + 0.5,
        "one": x[:1],
        "part": mx.random.normal((2, 64, 32)),
    }
    tape = Tape([], [], [], {}, {})
    names = []
    for i, value in enumerate(inputs):
        if isinstance(value, str):
            names.append(value)
            tape.inputs.append(value)
            tape.types[value] = Type(given[value].shape, FLOAT)
        else:
            names.append(f"c{i}")
            tape.constants[f"c{i}"] = value
            tape.types[f"c{i}"] = Type(value.shape, value.dtype)
    tape.outputs = [f"o{i}" for i in range(len(outputs))]
    tape.nodes = [Node(name, arguments, tuple(names), tuple(tape.outputs))]
    tape.types |= {
        v: Type(s, FLOAT) for v, s in zip(tape.outputs, outputs, strict=True)
    }
    if not tape.inputs:  # all constants: added to an input
        tape.inputs, tape.outputs = [A], ["sum"]
        tape.types |= {A: Type(x.shape, FLOAT), "sum": Type(x.shape, FLOAT)}
        tape.nodes.append(Node("Add", (), (A, "o0"), ("sum",)))
    return tape, [given[v] for v in tape.inputs]


def run(tape: Tape, arrays: list[mx.array], **forms: str) -> list[np.ndarray]:
    """On the emulated engine, after the check of every chip."""
    program = translate(tape, **forms)
    allow = [f for f in ("rsqrt", "concat") if f in forms.values()]
    # M1 and M3: reports of ane-train and ironmill that ANEForge contradicts.
    allow += ["m1-op", "m1-contraction", "m3-op", "lone-op"]
    for chip in CHIPS:
        dialect = "ios16" if chip in ("h13", "h14") else "ios18"
        if forms.get("slice") == "slice" and chip in CHIPS[:3]:
            continue
        if tape.nodes[0].name in ("Sin", "Cos") and chip in CHIPS[:2]:
            continue  # as the table says
        found = mil.check(program.text(dialect), chip, allow=allow)
        assert [f for f in found if f.severity == "error"] == []
    engine = emulated.Program(program.text(), limits="strict", allow=allow)
    return program.unpack(engine(program.pack([np.array(a) for a in arrays])))


def test_every_primitive_has_a_row() -> None:
    assert set(ROWS) == set(PRIMITIVES)


def test_the_documented_tables_are_those_of_the_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "blocks.md").read_text()
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in page.split("\n")
    ]
    described = {
        name: tuple(row[1:])
        for row in rows
        if len(row) == 4
        for name in row[0].split(", ")
    }
    for name, p in PRIMITIVES.items():
        assert described[name] == (p.mil, p.evidence, p.form or "-")
    for form, (choices, why) in FORMS.items():
        assert [form, ", ".join(choices), why] in rows


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_primitive(name: str) -> None:
    tape, arrays = tape_of(name)
    expected = tape.run(*arrays)
    for got, e in zip(run(tape, arrays), expected, strict=True):
        assert got.shape == e.shape
        assert error(got, e.astype(FLOAT)) < 2e-3


def test_every_form_is_tried() -> None:
    assert {form for form, _ in FORM_ROWS} == set(FORMS) - {"weights"}


#: The primitives that show a form.
FORM_ROWS = [
    ("concat", "Concatenate"),
    ("slice", "Slice"),
    ("slice", "Split"),
    ("sum", "Reduce"),
    ("max", "LogSumExp"),
    ("maximum", "Maximum"),
    ("maximum", "Minimum"),
    ("rsqrt", "Sqrt"),
    ("sigmoid", "Sigmoid"),
    *[("compare", n) for n in ("Greater", "GreaterEqual", "Less", "LessEqual")],
    *[("compare", n) for n in ("Equal", "NotEqual")],
    ("select", "Select"),
]


@pytest.mark.parametrize(
    ("form", "name", "choice"),
    [(f, n, c) for f, n in FORM_ROWS for c in FORMS[f][0]],
)
def test_form(form: str, name: str, choice: str) -> None:
    tape, arrays = tape_of(name)
    expected = tape.run(*arrays)
    for got, e in zip(run(tape, arrays, **{form: choice}), expected, strict=True):
        assert error(got, e.astype(FLOAT)) < 2e-3


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("weights",)])
def test_forms_change_the_program(form: str) -> None:
    name = next(n for f, n in FORM_ROWS if f == form)
    texts = {
        translate(tape_of(name)[0], **{form: choice}).text()
        for choice in FORMS[form][0]
    }
    # The mask of a Select is constant in its row: both forms are one.
    assert len(texts) == (1 if form == "select" else len(FORMS[form][0]))


def test_a_computed_condition_has_both_forms() -> None:
    def function(x: mx.array) -> mx.array:
        return mx.where(x > 0.5, x, -3 * x)

    x = mx.random.normal((64, 64))
    tape = lowered(capture(function, x).body)
    for choice in FORMS["select"][0]:
        assert error(run(tape, [x], select=choice)[0], function(x)) < 1e-3
    assert "select(" in translate(tape, select="select", compare="sign").text()
    assert "select(" not in translate(tape, compare="sign").text()


def of(
    function: Callable[..., mx.array], *arrays: mx.array, **forms: str
) -> np.ndarray:
    """A function's value from its program."""
    captured = capture(function, *arrays)
    inputs = captured.arguments(*arrays)
    return run(lowered(captured.body), inputs, **forms)[0]


@pytest.mark.parametrize("size", [1, 2, 33, 45, 64])
@pytest.mark.parametrize("choice", FORMS["max"][0])
def test_maxima_of_any_number(size: int, choice: str) -> None:
    x = mx.random.normal((size, 40, size))  # the maximum is at each place once
    x = x + 9 * mx.eye(size)[:, None]

    def function(x: mx.array) -> mx.array:
        return mx.max(x, -1, keepdims=True) + x

    assert error(of(function, x, max=choice), function(x)) < 1e-3


def test_infinity_is_a_number_in_masks() -> None:
    x = mx.random.normal((64, 64))
    table = mx.where(mx.tril(mx.ones((64, 64))) > 0, 0.0, -mx.inf)
    functions = [
        lambda x: mx.softmax(x + mx.where(mx.arange(64) < 9, 0.0, -mx.inf), -1),
        lambda x: mx.softmax(mx.maximum(x, -mx.inf), -1),
        lambda x: mx.softmax(mx.where(x > -mx.inf, x, -1e30), -1),
        lambda x: mx.softmax(x + table, -1),
    ]
    for function in functions:
        assert error(of(function, x), function(x)) < 2e-3


def test_a_sum_of_what_is_broadcast() -> None:
    x = mx.random.normal((2, 64, 48))

    def function(x: mx.array) -> mx.array:
        return x + mx.broadcast_to(x[:, :1], x.shape).sum(1, keepdims=True)

    assert error(of(function, x), function(x)) < 1e-3


def test_rows_without_an_element_are_uniform() -> None:
    x = mx.random.normal((64, 64))
    mask = mx.tril(mx.ones((64, 64), mx.bool_), -1)  # the first row attends nothing

    def constant(x: mx.array) -> mx.array:
        rows = mx.arange(64)[:, None] > mx.arange(64)[None]
        return mx.softmax(mx.where(rows, x, mx.finfo(mx.float32).min), -1)

    def given(x: mx.array, mask: mx.array) -> mx.array:
        return mx.softmax(mx.where(mask, x, mx.finfo(mx.float32).min), -1)

    assert error(of(constant, x), constant(x)) < 1e-3
    assert error(of(given, x, mask), constant(x)) < 1e-3


def test_transposed_operands_are_not_moved() -> None:
    captured = capture(
        lambda x, w: (x @ w.T).T @ x, mx.ones((64, 48)), mx.ones((32, 48))
    )
    text = translate(lowered(captured.body)).text()
    assert "transpose(" not in text
    assert (
        error(
            of(lambda x, w: (x @ w.T).T @ x, TABLE, TABLE[:32]),
            (TABLE @ TABLE[:32].T).T @ TABLE,
        )
        < 1e-3
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    layer, call = make(name)
    x, dy = mx.random.normal(X), mx.random.normal(X) * 1e-3
    y, gradients = exact(call, layer, x, dy)
    block = Block(call, layer, x)
    assert error(block(layer, x)[0], y) < 1.5e-3
    got = block.gradients((layer, x), [np.array(dy)])
    assert error(got["1"], gradients["1"]) < 5e-3
    for path, gradient in gradients.items():
        # The gradient of relu jumps where fp16 rounds over zero.
        assert error(got[path], gradient) < (3e-2 if name == "relu" else 6e-3), path


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["llama", "gpt"])
def test_blocks_on_every_chip(name: str, chip: str) -> None:
    layer, call = make(name)
    x, dy = mx.random.normal(X), mx.random.normal(X)
    y, gradients = exact(call, layer, x, dy)
    block = Block(call, layer, x)
    allow = ("m1-op", "m1-contraction")
    assert error(block(layer, x, chip=chip, allow=allow)[0], y) < 1.5e-3
    got = block.gradients((layer, x), [np.array(dy)], chip=chip, allow=allow)
    assert error(got["1"], gradients["1"]) < 5e-3


ALL_OTHER = {form: choices[-1] for form, (choices, _) in FORMS.items()}


@pytest.mark.parametrize(
    "forms",
    [
        *({form: choice} for form, (cs, _) in FORMS.items() for choice in cs[1:]),
        ALL_OTHER,
    ],
    ids=lambda forms: "-".join(forms.values()) if len(forms) < 3 else "all",
)
def test_a_block_in_other_forms(forms: dict[str, str]) -> None:
    layer, call = make("llama")
    x, dy = mx.random.normal(X), mx.random.normal(X)
    y, gradients = exact(call, layer, x, dy)
    block = Block(call, layer, x, **forms)
    allow = ("rsqrt", "concat")
    assert error(block(layer, x, allow=allow)[0], y) < 1.5e-3
    got = block.gradients((layer, x), [np.array(dy)], allow=allow)
    for path, gradient in gradients.items():
        assert error(got[path], gradient) < 6e-3, path


def test_exact_numerics() -> None:
    layer, call = make("llama")
    x, dy = mx.random.normal(X), mx.random.normal(X)
    y, gradients = exact(call, layer, x, dy)
    block = Block(call, layer, x)
    assert error(block(layer, x, numerics="exact")[0], y) < 2.2e-3
    got = block.gradients((layer, x), [np.array(dy)], numerics="exact")
    assert error(got["1"], gradients["1"]) < 5e-3
    assert max(error(got[p], g) for p, g in gradients.items()) < 8e-3


def test_dropout() -> None:
    layer = Layer("causal", False, nn.gelu, 0.3)
    x, dy = mx.random.normal(X), mx.random.normal(X)
    block = Block(plain, layer, x)
    for seed in (1, 2):
        mx.random.seed(seed)
        y, gradients = exact(plain, layer, x, dy)
        mx.random.seed(seed)
        assert error(block(layer, x)[0], y) < 1.5e-3
        mx.random.seed(seed)
        got = block.gradients((layer, x), [np.array(dy)])
        for path, gradient in gradients.items():
            assert error(got[path], gradient) < 6e-3, path
    mx.random.seed(3)  # another mask
    assert error(block(layer, x)[0], y) > 1e-2


def test_the_residual_and_large_products_stay_on_the_host() -> None:
    layer, call = make("llama")
    x = mx.random.normal(X)
    block = Block(call, layer, x)
    assert block.forward.outputs[0].residual == 0
    wanted = block.differentiable
    back = block.backward(wanted)
    paths = [block.captured.body.paths[block.captured.body.inputs[i]] for i in wanted]
    hosted = {p for p, o in zip(paths, back.outputs, strict=True) if o.gemms}
    assert "0.mlp.down_proj.weight" in hosted
    assert "0.input_layernorm.weight" not in hosted
    assert back.outputs[0].residual == 0  # dx = dy + …
    # One factor of each product is linear in dy, or it would scale twice or not.
    for output in back.outputs:
        for gemm in output.gemms:
            linear = [
                back.scaled[s.result] if s.result is not None else s.source == 0
                for s in (gemm.left, gemm.right)
            ]
            assert sum(linear) == 1
    # Only x's gradient: no product and no tap.
    (only,) = block.backward([0]).outputs
    assert not only.gemms and len(block.backward([0]).program.results) == 1


def test_adapters_stay_on_the_engine() -> None:
    layer, call = make("lora")
    x = mx.random.normal((1, 256, 64))
    block = Block(call, layer, x)
    body = block.captured.body
    wanted = [i for i, v in enumerate(body.inputs) if i == 0 or "lora" in body.paths[v]]
    back = block.backward(wanted)
    assert len(wanted) == 15 and not any(o.gemms for o in back.outputs)
    assert len(back.program.results) == 15


def test_large_and_small_cotangents() -> None:
    layer, call = make("llama")
    x, dy = mx.random.normal(X), mx.random.normal(X)
    block = Block(call, layer, x)
    normal = block.gradients((layer, x), [np.array(dy)])
    for power in (-40, 40):
        got = block.gradients((layer, x), [np.array(dy) * 2.0**power])
        for path, gradient in normal.items():
            assert error(got[path] * 2.0**-power, gradient) < 1e-6, path


def test_massive_activations() -> None:
    layer, call = make("llama")
    x = np.array(mx.random.normal(X))
    x[:, :, 7] = 20000.0
    y = np.array(call(layer, mx.array(x)))
    (got,) = Block(call, layer, mx.array(x))(layer, mx.array(x))
    assert np.isfinite(got).all()
    assert error(got - x, y - x) < 2e-2


def test_equal_layers_share_one_program() -> None:
    x = mx.random.normal(X)
    layers = [llama(num_hidden_layers=1) for _ in range(2)]
    blocks = [Block(lambda layer, x: layer(x, "causal", None), m, x) for m in layers]
    assert blocks[0].forward is blocks[1].forward
    assert blocks[0].backward([0, 1]) is blocks[1].backward([0, 1])
    other = llama(rope_theta=1e5)  # another table
    block = Block(lambda layer, x: layer(x, "causal", None), other, x)
    assert block.forward is not blocks[0].forward
    assert block.forward.program.text() == blocks[0].forward.program.text()


def test_ports_are_named_in_ascii_order() -> None:
    layer, call = make("llama")
    program = Block(call, layer, mx.random.normal(X)).forward.program
    names = [v.name for v in program.mil.functions[0].inputs]
    assert names == sorted(names) == [p.name for p in program.ports]
    assert all(re.fullmatch(r"a\d{3}_[xwtr]", n) for n in names)
    assert all(p.shape[-1] >= 32 for p in program.ports)


def test_weights_as_rows() -> None:
    layer, call = make("llama")
    x = mx.random.normal(X)
    one = Block(call, layer, x, weights="rows").forward.program
    many = Block(call, layer, x).forward.program
    assert len(many.ports) - len(one.ports) == 8  # nine weights in one port
    (rows,) = (p for p in one.ports if len(p.parts) > 1)
    assert any(part.transposed for part in rows.parts)  # down_proj is (64, 96)


def test_both_dialects_mean_the_same() -> None:
    layer, call = make("gpt")
    program = Block(call, layer, mx.random.normal(X)).forward.program
    assert mil.parse(program.text("ios16")).dialect == "ios16"
    assert program.text("ios16").startswith("program(1.0)")


UNSUPPORTED: dict[str, tuple[Callable[[mx.array], mx.array], str]] = {
    "Sort": (lambda x: mx.sort(x * 2, -1) + x, "Sort"),
    "integers": (lambda x: x + x.astype(mx.int32), "AsType"),
    "product": (lambda x: x + mx.prod(x, -1, keepdims=True), "Reduce"),
    "a large factor": (lambda x: x * 1e5, "Multiply"),
    "a large table": (lambda x: x * (mx.arange(64) * 1e5), "Multiply"),
    "a small factor": (lambda x: x * 1e-9, "Multiply"),
    "six axes": (
        lambda x: x.reshape(2, 2, 2, 2, 2, 128).transpose(5, 4, 3, 2, 1, 0) + 1,
        "Reshape",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_primitives_are_named(name: str) -> None:
    function, primitive = UNSUPPORTED[name]
    with pytest.raises(Unsupported, match=primitive):
        Block(function, mx.ones((64, 64)))


def test_the_nearest_parameter_is_named() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 8)

        def __call__(self, x: mx.array) -> mx.array:
            return mx.argpartition(self.gate(x), 2)

    router = Router()
    with pytest.raises(Unsupported, match=r"ArgPartition near 0\.gate\.") as caught:
        Block(lambda router, x: router(x), router, mx.ones((64, 64)))
    assert caught.value.primitive == "ArgPartition"


def test_unknown_forms() -> None:
    tape = tape_of("Add")[0]
    for forms in ({"concat": "tile"}, {"shape": "round"}):
        with pytest.raises(ValueError, match=r"\[mlx_ane.translate\] form"):
            translate(tape, **forms)
