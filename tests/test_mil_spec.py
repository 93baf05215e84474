"""Core ML models: every program of the suite, as coremltools reads it, against ours."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_emulated_ops
import test_emulated_tensors
import test_emulated_windows
from mil_text import program as text_of
from test_translate import FORM_ROWS, ROWS, tape_of

from mlx_ane import mil
from mlx_ane.builder import FORMS
from mlx_ane.translate import translate

logging.disable(logging.WARNING)  # coremltools misses its macOS parts
warnings.filterwarnings("ignore", module="coremltools")
coremltools = pytest.importorskip("coremltools", reason="not run: no coremltools")
logging.disable(logging.NOTSET)

from coremltools import proto  # noqa: E402
from coremltools.converters.mil.frontend.milproto.load import load  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

CASES = [
    *test_emulated_ops.CASES,
    *test_emulated_tensors.CASES,
    *test_emulated_windows.CASES,
]
#: Where coremltools infers less than MIL defines: what it says of some cases.
STRICTER = {
    "matmul": ("Mismatch between var types", "list index out of range"),
    "einsum": ("unsupported einsum equation", "inputs not of the same rank"),
    "reshape": ("When there is 0 in shape",),
    "reshape_like": ("begins must be a Tuple",),
    "constexpr_lut_to_dense": ("dtype of indices should be uint",),
    "constexpr_sparse_to_dense": ("expects tensor or scalar of dtype",),
}


def parsed(model: bytes) -> Any:
    """The message, whose bytes coremltools writes in the same number."""
    message = proto.Model_pb2.Model()
    message.ParseFromString(model)
    assert len(message.SerializeToString()) == len(model)
    return message


def loaded(message: Any, folder: str = "") -> Any:
    """The typed program of coremltools."""
    version = message.specificationVersion
    return load(message, specification_version=version, file_weights_dir=folder)


def dtype_of(var: Any) -> str:
    kind = var.sym_type.get_primitive() if types.is_tensor(var.sym_type) else var.dtype
    return str(types.builtin_to_string(kind)).replace("str", "string")


def same(ours: mil.Program, message: Any, folder: str = "") -> None:
    """Operations, types and constant arguments, one by one."""
    theirs = loaded(message, folder)
    for function in ours.functions:
        block = theirs.functions[function.name]
        made = {op.outputs[0].name: op for op in block.operations if op.outputs}
        inputs = block.inputs.items()
        assert [(n, tuple(v.shape), dtype_of(v)) for n, v in inputs] == [
            (v.name, v.shape, v.dtype) for v in function.inputs if not v.state
        ] or any(v.state for v in function.inputs)
        assert [v.name for v in block.outputs] == function.outputs
        consts = {
            op.outputs[0].name: op.attributes["val"]
            for op in function.operations
            if op.op == "const"
        }
        for op in function.operations:
            if op.op == "const" or not op.outputs:
                continue
            found = made[op.outputs[0].name]
            assert found.op_type == op.op
            for value, var in zip(op.outputs, found.outputs, strict=True):
                assert (value.shape, value.dtype) == (tuple(var.shape), dtype_of(var))
            for name, argument in (op.inputs | op.attributes).items():
                argument = (
                    consts.get(argument, argument)
                    if (isinstance(argument, str))
                    else argument
                )
                if name == "name" or not isinstance(argument, mil.Constant):
                    continue
                if isinstance(argument.value, np.ndarray):
                    got = np.asarray(found.inputs[name].val)
                    if op.op == "slice_by_index" and (argument.value < 0).any():
                        continue  # coremltools counts from the start instead
                    assert np.array_equal(
                        got.astype(np.float64).reshape(argument.shape),
                        argument.value.astype(np.float64),
                        equal_nan=True,
                    )


def check(program: mil.Program) -> None:
    """A program survives the way to coremltools, and back."""
    model = mil.spec.write(program)
    message = parsed(model)
    assert message.specificationVersion == mil.spec.version(program)
    same(program, message)
    back = mil.spec.read(model)
    assert mil.spec.write(back, version=message.specificationVersion) == model


def program_of(case: Any) -> mil.Program:
    wanted = case.want if isinstance(case.want, tuple) else (case.want,)
    arrays = [np.asarray(y) for y in wanted]
    outputs = [y.astype(np.float16) if y.dtype == np.float64 else y for y in arrays]
    text = text_of(case.op, case.inputs, case.arguments, outputs, case.operands)
    # A model takes and gives no bool or uint8: they are cast inside.
    for kind, shape, name in re.findall(r"tensor<(bool|uint8), (\S.*?)> (\w+)", text):
        if name in case.inputs:
            given = f"tensor<{kind}, {shape}> {name}"
            text = text.replace(given, f"tensor<fp16, {shape}> {name}_in", 1)
            line = f'{given} = cast(x={name}_in, dtype=string("{kind}"));'
            text = text.replace(") {\n", f") {{\n    {line}\n", 1)
        elif re.fullmatch(r"y\d", name):
            cast = f'cast(x={name}, dtype=string("fp16"));'
            line = f"tensor<fp16, {shape}> {name}_out = {cast}"
            head, _, tail = text.rpartition("  } -> (")
            tail = re.sub(rf"\b{name}\b", f"{name}_out", tail)
            text = f"{head}    {line}\n  }} -> ({tail}"
    return mil.parse(text)


@pytest.mark.parametrize("case", CASES, ids=test_emulated_ops.name_of)
def test_operation(case: Any) -> None:
    program = program_of(case)
    try:
        check(program)
    except (ValueError, AssertionError, IndexError) as error:
        assert any(r in str(error) for r in STRICTER.get(case.op, ())), error
        # Refused by coremltools' inference alone: the bytes are still ours.
        model = mil.spec.write(program)
        parsed(model)
        version = mil.spec.version(program)
        assert mil.spec.write(mil.spec.read(model), version=version) == model


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_the_translator_emits(name: str) -> None:
    forms = [{}, *({f: c} for f, n in FORM_ROWS if n == name for c in FORMS[f][0])]
    for form in forms:
        program = translate(tape_of(name)[0], **form).mil
        try:
            check(program)
        except AssertionError as error:
            # select of two numbers: coremltools gives it the rank of the numbers.
            assert "Mismatch between var types" in str(error)
            assert "select(a = v" in program.text()


X = "tensor<fp16, [2, 64]> x"


def model_of(body: str, inputs: str = X, output: str = "y", name: str = "main") -> Any:
    return mil.parse(
        f"program(1.3) {{ func {name}<ios18>({inputs}) {{ {body} }} -> ({output}); }}"
    )


RELU = 'tensor<fp16, [2, 64]> y = relu(x = x)[name = string("y")];'


@pytest.mark.parametrize(
    ("program", "options", "words"),
    [
        (model_of(RELU.replace("relu", "rolu")), {}, "rolu is not a MIL operation"),
        (model_of(RELU.replace("x = x", "z = x")), {}, "the argument is z"),
        (model_of(RELU.replace("x = x", "x = q")), {}, "x = q"),
        (model_of(RELU.replace("2, 64]> y", "2, 32]> y")), {}, "[2, 64]"),
        (model_of(RELU, name="other"), {}, "no function main"),
        (model_of(RELU, output="x"), {}, "give it out through an identity"),
        (model_of(RELU, output="y, y"), {}, "output y is given twice"),
        (model_of(RELU), {"version": 5}, "version is 5, need 6 to 10"),
        (model_of(RELU), {"version": 6}, "need 7 or more for x is fp16"),
        (model_of(RELU), {"shapes": {"x": [[1, 64]]}}, "x has a fixed shape"),
        (
            model_of(
                'tensor<fp16, []> y = relu(x = x)[name = string("y")];',
                "tensor<fp16, []> x",
            ),
            {},
            "input x is a scalar",
        ),
        (
            model_of(
                'tensor<bool, [2]> y = logical_not(x = x)[name = string("y")];',
                "tensor<bool, [2]> x",
            ),
            {},
            "is bool, need fp16, fp32 or int32",
        ),
        (
            model_of(
                "tensor<fp16, [2, 64]> y = scaled_dot_product_attention(query = x, "
                'key = x, value = x)[name = string("y")];'
            ),
            {"version": 8},
            "need 9 or more for scaled_dot_product_attention",
        ),
    ],
)
def test_refusals(program: mil.Program, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=r"^\[mlx_ane.mil.spec\] [^\n]*\.$") as caught:
        mil.spec.write(program, **options)
    assert words in str(caught.value)


def test_version_follows_operations_arguments_and_types() -> None:
    def version(body: str, inputs: str = "tensor<fp32, [2, 64]> x") -> int:
        return mil.spec.version(model_of(body, inputs))

    fp32 = RELU.replace("fp16", "fp32")
    assert version(fp32) == 6
    assert version(RELU, X) == 7
    gather = (
        'tensor<int32, [1]> i = const()[name = string("i"), '
        "val = tensor<int32, [1]>([0])]; tensor<fp32, [1, 64]> y = gather(x = x, "
        'indices = i, axis = int32(0){})[name = string("y")];'
    )
    assert version(gather.format("")) == 6
    assert version(gather.format(", batch_dims = int32(0)")) == 7
    assert version(gather.format(", validate_indices = bool(false)")) == 8
    cast = (
        'tensor<int16, [2, 64]> s = cast(x = x, dtype = string("int16")); '
        'tensor<fp32, [2, 64]> y = cast(x = s, dtype = string("fp32"));'
    )
    assert version(cast) == 8


def test_a_state() -> None:
    program = model_of(
        "tensor<fp16, [2, 64]> r = read_state(input = s); "
        "tensor<fp16, [2, 64]> y = add(x = r, y = x); "
        "write_state(input = s, data = y);",
        f"{X}, state<tensor<fp16, [2, 64]>> s",
    )
    message = parsed(mil.spec.write(program))
    assert message.specificationVersion == 9
    assert [f.name for f in message.description.input] == ["x"]
    (state,) = message.description.state
    assert list(state.type.stateType.arrayType.shape) == [2, 64]
    ops = [op.op_type for op in loaded(message).functions["main"].operations]
    assert ops == ["read_state", "add", "coreml_update_state"]
    assert mil.spec.read(message.SerializeToString()).functions[0].inputs[1].state


def test_the_description() -> None:
    program = model_of(
        'tensor<fp32, [2, 64]> f = cast(x = x, dtype = string("fp32")); '
        "tensor<fp32, [2, 64]> y = mul(x = f, y = z); "
        "tensor<int32, [2, 1]> k = reduce_argmax(x = y, axis = int32(1));",
        f"{X}, tensor<fp32, [2, 64]> z",
        "y, k",
    )
    model = mil.spec.write(
        program,
        description="does",
        author="me",
        license="MIT",
        model_version="3",
        metadata={"key": "text", "empty": ""},
    )
    about = parsed(model).description
    array = proto.FeatureTypes_pb2.ArrayFeatureType
    found = [
        (f.name, list(f.type.multiArrayType.shape), f.type.multiArrayType.dataType)
        for f in [*about.input, *about.output]
    ]
    assert found == [
        ("x", [2, 64], array.FLOAT16),
        ("z", [2, 64], array.FLOAT32),
        ("y", [2, 64], array.FLOAT32),
        ("k", [2, 1], array.INT32),
    ]
    m = about.metadata
    assert (m.shortDescription, m.author, m.license) == ("does", "me", "MIT")
    assert m.versionString == "3"
    assert dict(m.userDefined) == {"key": "text", "empty": ""}


def test_axes_of_several_sizes() -> None:
    body = 'tensor<fp16, [1, ?]> y = relu(x = x)[name = string("y")];'
    program = model_of(body, "tensor<fp16, [1, ?]> x")
    with pytest.raises(ValueError, match="has an axis of unknown size"):
        mil.spec.write(program)
    with pytest.raises(ValueError, match="is not one that the program declares"):
        mil.spec.write(program, shapes={"x": [[2, 64]]})
    message = parsed(mil.spec.write(program, shapes={"x": [[1, 64], [1, 128]]}))
    array = message.description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 64]
    shapes = [list(s.shape) for s in array.enumeratedShapes.shapes]
    assert shapes == [[1, 64], [1, 128]]
    assert list(message.description.output[0].type.multiArrayType.shape) == []
    loaded(message)


def test_several_functions() -> None:
    text = "program(1.3) {{ {} {} }}"
    one = f"func {{}}<ios18>({X}) {{{{ {RELU} }}}} -> (y);"
    program = mil.parse(text.format(one.format("main"), one.format("other")))
    message = parsed(mil.spec.write(program))
    assert message.specificationVersion == 9
    about = message.description
    assert [f.name for f in about.functions] == ["main", "other"]
    assert about.defaultFunctionName == "main"
    assert [f.name for f in about.functions[1].output] == ["y"]
    assert not about.input
    assert set(loaded(message).functions) == {"main", "other"}


def weighted(kind: str, values: np.ndarray) -> mil.Program:
    shape = ", ".join(map(str, values.shape))
    literal = f"tensor<{kind}, [{shape}]>([{', '.join(map(str, values.ravel()))}])"
    return model_of(
        f'tensor<{kind}, [{shape}]> w = const()[name = string("w"), val = {literal}]; '
        "tensor<fp16, [2, 64]> y = add(x = x, y = w);"
    )


def test_a_package(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float16) / 8
    program = weighted("fp16", values)
    writer = mil.weights.Writer()
    before = writer.add(np.zeros(3, np.float16))
    model = mil.spec.write(program, weights=writer, author="me")
    folder = tmp_path / "m.mlpackage"
    mil.spec.save(folder, model, writer.getvalue())

    spec = coremltools.utils.load_spec(str(folder))
    assert spec.SerializeToString() == parsed(model).SerializeToString()
    opened = coremltools.models.MLModel(str(folder), skip_model_load=True)
    assert opened.author == "me"
    (const,) = (
        op
        for op in spec.mlProgram.functions["main"]
        .block_specializations["CoreML6"]
        .operations
        if op.type == "const"
    )
    file = const.attributes["val"].blobFileValue
    assert file.fileName == mil.spec.WEIGHTS
    chunk = next(c for c in mil.weights.chunks(writer.getvalue()) if c.offset != before)
    assert file.offset == chunk.offset
    block = loaded(spec, opened.weights_dir).functions["main"]
    assert np.array_equal(block.find_ops(op_type="const")[0].outputs[0].val, values)

    manifest = json.loads((folder / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    assert root["path"] == "com.apple.CoreML/model.mlmodel"
    back, files = mil.spec.load(folder)
    assert (
        back.functions[0].operations[0].attributes["val"].value.offset == chunk.offset
    )
    assert files == {mil.spec.WEIGHTS: writer.getvalue()}

    mil.spec.save(folder, mil.spec.write(program))  # replaces it whole
    assert not (folder / "Data/com.apple.CoreML/weights").exists()
    with pytest.raises(ValueError, match=r"need a name ending in \.mlpackage"):
        mil.spec.save(tmp_path / "m.mlmodel", model)
    (tmp_path / "dir.mlpackage").mkdir()
    with pytest.raises(ValueError, match="is there and no package"):
        mil.spec.save(tmp_path / "dir.mlpackage", model)


def test_small_constants_stay_in_the_model() -> None:
    writer = mil.weights.Writer()
    program = weighted("fp16", np.ones((2, 1), np.float16))
    mil.spec.write(program, weights=writer)
    assert mil.weights.chunks(writer.getvalue()) == []


def test_what_coremltools_writes_is_read() -> None:
    from coremltools.converters.mil import Builder as mb

    target = coremltools.target.macOS15

    @mb.program(
        input_specs=[mb.TensorSpec(shape=(1, 64), dtype=types.fp16)],
        opset_version=target,
    )
    def function(x: Any) -> Any:
        y = mb.linear(x=x, weight=np.eye(3, 64, dtype=np.float16))
        return mb.concat(values=[y, y], axis=1, name="y")

    theirs = coremltools.convert(
        function,
        minimum_deployment_target=target,
        skip_model_load=True,
        inputs=[coremltools.TensorType(name="x", dtype=np.float16)],
        outputs=[coremltools.TensorType(name="y", dtype=np.float16)],
    ).get_spec()
    program = mil.spec.read(theirs.SerializeToString())
    ops = [op.op for op in program.functions[0].operations if op.op != "const"]
    assert ops == ["linear", "concat"]
    again = parsed(mil.spec.write(program, version=9))
    theirs.mlProgram.ClearField("attributes")  # versions of its sources
    assert again.mlProgram == theirs.mlProgram
    assert again.description.input == theirs.description.input
    assert again.description.output == theirs.description.output


def test_damaged_bytes_are_refused() -> None:
    model = mil.spec.write(weighted("fp16", np.ones(64, np.float16)))
    for end in range(0, len(model), 7):
        with pytest.raises(ValueError, match=r"^\[mlx_ane\.mil\.spec\]"):
            mil.spec.read(model[:end])
    random = np.random.default_rng(0)
    for _ in range(300):
        bytes_ = bytearray(model)
        for place in random.integers(0, len(model), 3):
            bytes_[place] = random.integers(0, 256)
        try:
            mil.spec.read(bytes(bytes_)).text("ios18")
        except ValueError:
            pass
