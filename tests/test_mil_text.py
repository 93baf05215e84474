"""MIL text from Python: the corpus, values, round trips of random programs, errors."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ane import mil

CORPUS = sorted((pathlib.Path(__file__).parent / "data" / "mil").glob("*.mil"))
RELU = """program(1.3) {
  func main<ios18>(tensor<fp16, [1, 64, 1, 32]> x) {
    tensor<fp16, [1, 64, 1, 32]> y = relu(x = x)[name = string("y")];
  } -> (y);
}"""


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus_keeps_its_meaning(path: pathlib.Path) -> None:
    program = mil.parse(path.read_bytes())
    assert mil.parse(program.text()) == program
    assert isinstance(mil.check(program, "h13"), list)
    other = "ios16" if program.dialect == "ios18" else "ios18"
    if path.stem in ("int8_bank", "stateful"):
        with pytest.raises(ValueError, match="which ios16 does not have; write it as"):
            program.text(other)
        return
    converted = mil.parse(program.text(other))
    assert converted.dialect == other
    assert converted == program
    assert "newer-op" not in {finding.rule for finding in mil.check(converted, "h13")}
    again = mil.parse(converted.text(program.dialect))
    assert [f.operations for f in _plain(again)] == [
        f.operations for f in _plain(program)
    ]


def test_corpus_is_there() -> None:
    assert len(CORPUS) >= 11


def test_program_as_python_values() -> None:
    path = next(path for path in CORPUS if path.stem == "by_hand")
    program = mil.parse(path.read_text())
    assert program.build_info["coremlc-version"] == "3520.5.1"
    main = program.functions[0]
    assert (main.name, main.opset, main.outputs) == ("main", "ios18", ["product", "y"])
    assert main.inputs == [mil.Value("x", "fp16", (2, 3))]
    w, _, scaled, product, gelu = main.operations
    np.testing.assert_array_equal(w.attributes["val"].value, [[1, 2, 3], [4, 5, 6]])
    assert scaled.inputs == {"x": "x", "y": "scale"}
    assert product.inputs["transpose_y"].value.item() is True
    assert gelu.inputs["mode"].value == ["EXACT"]
    assert gelu.name == "y"
    assert gelu.line == 21


def test_blobs_and_tuples_as_python_values() -> None:
    by_name = {path.stem: mil.parse(path.read_text()) for path in CORPUS}
    bank = by_name["int8_bank"].functions[0].operations[0]
    assert bank.inputs["scale"].value == mil.Blob("@model_path/weights/bank.bin", 192)
    joined = by_name["compiled"].functions[0].operations[4]
    assert joined.inputs["values"] == ("parts_1", "parts_0")
    assert by_name["stateful"].functions[0].inputs[0].state


def test_text_and_bytes_are_the_same() -> None:
    assert mil.parse(RELU) == mil.parse(RELU.encode())
    assert mil.parse(RELU) != mil.parse(RELU.replace("relu", "exp"))


def test_unknown_dialect() -> None:
    with pytest.raises(ValueError, match="dialect is 'ios99', need"):
        mil.parse(RELU).text("ios99")


def test_error_names_line_column_and_shows_a_caret() -> None:
    with pytest.raises(ValueError) as error:
        mil.parse(RELU.replace("x = x", "x = ?"))
    message, line, caret = str(error.value).splitlines()
    assert message == ("[mlx_ane.mil] line 3, column 47: expected a value, got '?'.")
    assert line[caret.index("^")] == "?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "not valid UTF-8"),
        ("program(1.3) {\0", "NUL byte"),
        ("\ud800", "not valid UTF-8"),
        ("", "expected program"),
        (RELU[:-1], "expected func or '}'"),
        (RELU.replace("64", "9223372036854775808"), "too large"),
        (RELU.replace("64", "-1"), "expected a dimension"),
        (RELU.replace("x = x", "x = " + "(" * 100), "32 levels"),
    ],
    ids=lambda value: None if isinstance(value, (bytes, str)) else "case",
)
def test_hostile_text(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        mil.parse(text)


# Random programs, as text, of every kind of value.
names = st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_]{0,20}\Z").filter(
    lambda name: name not in {"true", "false", "inf", "nan"}
)
strings = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20
)
floats = ("fp16", "fp32", "fp64", "bf16")
ranges = {
    "int4": (-8, 7),
    "uint3": (0, 7),
    "int8": (-128, 127),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


@st.composite
def constants(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from([*floats, *ranges, "bool", "string", "blob"]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    if kind == "blob":
        path = _quoted("@model_path/" + draw(names))
        offset = draw(st.integers(0, 2**63 - 1))
        return f"tensor<fp16, {shape}>(BLOBFILE(path = {path}, offset = {offset}))"
    count = int(np.prod(shape, dtype=int))
    if kind == "string":
        values = [_quoted(draw(strings)) for _ in range(count)]
    elif kind == "bool":
        values = [draw(st.sampled_from(["true", "false"])) for _ in range(count)]
    elif kind in floats:
        numbers = st.floats(width=64)
        spelling = draw(st.sampled_from([repr, float.hex, "{:.3e}".format]))
        values = [spelling(draw(numbers)) for _ in range(count)]
    else:
        values = [str(draw(st.integers(*ranges[kind]))) for _ in range(count)]
    body = f"[{', '.join(values)}]" if shape else values[0]
    return f"tensor<{kind}, {shape}>({body})"


@st.composite
def arguments(draw: st.DrawFn) -> str:
    one = st.one_of(names, constants())
    items = draw(st.lists(one, min_size=1, max_size=3))
    return items[0] if draw(st.booleans()) else f"({', '.join(items)})"


@st.composite
def programs(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        inputs = draw(st.dictionaries(names, arguments(), max_size=3))
        attributes = draw(st.dictionaries(names, constants(), max_size=2))
        outputs = draw(st.lists(names, min_size=1, max_size=2))
        types = draw(st.sampled_from(["fp16", "tensor<int8, [1, ?]>", "string"]))
        left = ", ".join(f"{types} {name}" for name in outputs)
        op = draw(names.filter(lambda name: name != "const"))
        given = ", ".join(f"{key} = {value}" for key, value in inputs.items())
        extra = ", ".join(f"{key} = {value}" for key, value in attributes.items())
        lines.append(f"{left} = {op}({given})" + (f"[{extra}];" if extra else ";"))
    info = draw(st.dictionaries(strings, strings, max_size=3))
    entries = ", ".join(f"{{{_quoted(k)}, {_quoted(v)}}}" for k, v in info.items())
    version, opset = draw(st.sampled_from([("1.0", "ios17"), ("1.3", "ios18")]))
    return (
        f"program({version})[buildInfo = dict<string, string>({{{entries}}})]{{"
        f"func {draw(names)}<{opset}>(tensor<fp16, [1, 2]> x) {{\n"
        + "\n".join(lines)
        + f"\n}} -> ({draw(names)});}}"
    )


@given(programs())
def test_writing_keeps_the_meaning(text: str) -> None:
    program = mil.parse(text)
    assert mil.parse(program.text()) == program


@given(programs(), st.data())
def test_damaged_text_is_refused_with_a_place(text: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(text) - 1))
    damage = data.draw(
        st.sampled_from(["", "(", "]", '"', "\\", "\n", "1e", "tensor<"])
    )
    damaged = text[:place] + damage + text[place + 1 :]
    try:
        program = mil.parse(damaged)
    except ValueError as error:
        assert str(error).startswith("[mlx_ane.mil] line ")
        assert str(error).endswith("^")
    else:
        assert mil.parse(program.text()) == program


def _plain(program: mil.Program) -> list[mil.Function]:
    """Functions with what compares: lines left out, arrays as lists."""

    def constant(value: mil.Constant) -> tuple[object, ...]:
        array = value.value
        kept = array.tobytes() if isinstance(array, np.ndarray) else array
        return (value.dtype, value.shape, kept)

    def argument(value: object) -> object:
        return constant(value) if isinstance(value, mil.Constant) else value

    def operation(op: mil.Operation) -> object:
        inputs = {key: argument(value) for key, value in op.inputs.items()}
        attributes = {key: constant(value) for key, value in op.attributes.items()}
        return (op.op, op.name, inputs, attributes, op.outputs)

    return [
        mil.Function(
            f.name,
            "",
            f.inputs,
            [operation(op) for op in f.operations],  # type: ignore[misc]
            f.outputs,
        )
        for f in program.functions
    ]
