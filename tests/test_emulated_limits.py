"""Limits on programs: each with a program that trips it and one just inside."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_mil_check import CASES

from mlx_ane import emulated, mil

X = "tensor<fp16, [1, 8, 1, 32]>"


def function(
    body: str,
    inputs: str = f"{X} x",
    outputs: str = "y",
    header: str = "program(1.3)",
    opset: str = "ios18",
) -> str:
    return (
        f"{header}\n[buildInfo = dict<string, string>({{}})]\n{{\n"
        f"func main<{opset}>({inputs}) {{\n{body}\n}} -> ({outputs});\n}}"
    )


def op(call: str, kind: str = X, name: str = "y") -> str:
    return f'{kind} {name} = {call}[name=string("{name}")];'


def const(name: str, kind: str, value: str) -> str:
    return f'{kind} {name} = const()[name=string("{name}"), val={value}];'


def shaped(shape: str) -> str:
    kind = f"tensor<fp16, {shape}>"
    return function(op("relu(x=x)", kind), f"{kind} x")


def conv(
    channels: int, width: int = 1, bias: bool = False, runtime: bool = False
) -> str:
    weight = f"tensor<fp16, [{channels}, 1, 1, {width}]>"
    out = f"tensor<fp16, [1, {channels}, 1, {64 - width + 1}]>"
    zeros = f"tensor<fp16, [{channels}]>"
    lines = [
        const(
            "w",
            weight,
            f'{weight}(BLOBFILE(path=string("@model_path/w.bin"), offset=uint64(64)))',
        )
    ]
    if bias:
        lines.append(const("b", zeros, f"{zeros}([{', '.join(['0'] * channels)}])"))
    given = "v" if runtime else "w"
    lines.append(op(f"conv(x=x, weight={given}{', bias=b' if bias else ''})", out))
    inputs = "tensor<fp16, [1, 1, 1, 64]> x" + (f", {weight} v" if runtime else "")
    return function("\n".join(lines), inputs)


def weights(halves: int, chunks: int = 1) -> dict[str, bytes]:
    data = struct.pack("<II56x", chunks, 2)
    size = -(-halves * 2 // 64) * 64
    for _ in range(chunks):
        data += struct.pack("<IIQQ40x", 0xDEADBEEF, 1, halves * 2, len(data) + 64)
        data += b"\0" * size
    return {"@model_path/w.bin": data}


def blobs(count: int, scalar: bool = False, files: int = 1) -> str:
    lines = [
        const(
            f"w{i}",
            X,
            f'{X}(BLOBFILE(path=string("@model_path/w{i % files or ""}.bin"), '
            f"offset=uint64({64 + i // files * 576})))",
        )
        for i in range(count)
    ]
    lines += [
        op(f"add(x={'x' if i == 0 else f'y{i - 1}'}, y=w{i})", X, f"y{i}")
        for i in range(count)
    ]
    last = f"y{count - 1}"
    if scalar:
        lines.append(const("s", "fp16", "fp16(2)"))
        lines.append(op(f"mul(x={last}, y=s)"))
    else:
        lines.append(op(f"relu(x={last})"))
    return function("\n".join(lines))


CONCAT = "\n".join(
    [
        const("a", "int32", "int32(1)"),
        const("i", "bool", "bool(false)"),
        op(
            "concat(values=(x, x), axis=a, interleave=i)",
            "tensor<fp16, [1, 16, 1, 32]>",
        ),
    ]
)
REDUCED = "tensor<fp16, [1, 8, 1, 1]>"
AXES = const("a", "tensor<int32, [1]>", "tensor<int32, [1]>([3])") + const(
    "k", "bool", "bool(true)"
)


def reduced_times(value: str) -> str:
    return function(
        AXES
        + const("z", "fp16", f"fp16({value})")
        + op("reduce_sum(x=x, axes=a, keep_dims=k)", REDUCED, "r")
        + op("mul(x=r, y=z)", REDUCED)
    )


def cast_to(kind: str, io: bool = False) -> str:
    middle = X.replace("fp16", kind)
    body = const("d", "string", f'string("{kind}")') + op(
        "cast(x=x, dtype=d)", middle, "m"
    )
    if io:
        return function(body, outputs="m")
    return function(
        body + const("e", "string", 'string("fp16")') + op("cast(x=m, dtype=e)")
    )


def attention(mask: bool) -> str:
    inputs = ", ".join(f"{X} {name}" for name in "qkv")
    square = "tensor<fp16, [1, 8, 1, 1]>"
    return function(
        op(
            "scaled_dot_product_attention(query=q, key=k, value=v"
            + (", attn_mask=m)" if mask else ")")
        ),
        inputs + (f", {square} m" if mask else ""),
    )


VERBOSE = function(
    f'{X} y = relu(x=x)[name=tensor<string, []>("y")];',
    header="program(1.0)",
    opset="ios16",
).replace("dict<string, string>", "dict<tensor<string, []>, tensor<string, []>>")


def verbose(text: str) -> str:
    return mil.parse(text).text("ios16")


RELU = function(op("relu(x=x)"))
FP32 = RELU.replace("fp16", "fp32")
MATMUL = "matmul(x=x, y=x, transpose_x={}, transpose_y=t)"
INLINE = function(
    const("t", "bool", "bool(true)")
    + op(MATMUL.format("bool(false)"), "tensor<fp16, [1, 8, 1, 1]>")
)
NAMED = function(
    const("t", "bool", "bool(true)")
    + const("f", "bool", "bool(false)")
    + op(MATMUL.format("f"), "tensor<fp16, [1, 8, 1, 1]>")
)
BIG = weights(256, 17)
MANY = {
    f"@model_path/w{i or ''}.bin": weights(256)["@model_path/w.bin"] for i in range(17)
}

# rule, chip, program that trips it, program just inside, weights, limits
TRIPS = [
    (
        "rank",
        "h16g",
        shaped("[1, 1, 1, 1, 1, 32]"),
        shaped("[1, 1, 1, 1, 32]"),
        {},
        "program",
    ),
    ("axis", "h16g", shaped("[1, 1, 65537]"), shaped("[1, 1, 65536]"), {}, "program"),
    ("axis", "h15", shaped("[1, 1, 16385]"), shaped("[1, 1, 16384]"), {}, "program"),
    (
        "channels",
        "h15",
        shaped("[1, 65537, 1, 32]"),
        shaped("[1, 65536, 1, 32]"),
        {},
        "program",
    ),
    ("kernel-width", "h16g", conv(2, 16), conv(2, 15), None, "program"),
    (
        "kernel-width",
        "h13",
        conv(2, 14).replace("1.3", "1.0"),
        conv(2, 13).replace("1.3", "1.0"),
        None,
        "program",
    ),
    ("dialect", "h14", RELU, VERBOSE, {}, "strict"),
    ("fp32-io", "h13", VERBOSE.replace("fp16", "fp32"), VERBOSE, {}, "program"),
    ("fp32-io", "h14", VERBOSE.replace("fp16", "fp32"), VERBOSE, {}, "program"),
    ("cast", "h14", verbose(cast_to("fp32")), VERBOSE, {}, "strict"),
    ("chunks", "h13", verbose(blobs(2)), verbose(blobs(1)), BIG, "strict"),
    ("io-dtype", "h16g", cast_to("bool", True), cast_to("fp32", True), {}, "strict"),
    ("int8-io", "h16g", cast_to("int8", True), cast_to("fp32", True), {}, "strict"),
    ("cast-dtype", "h16g", cast_to("int32"), cast_to("int8"), {}, "strict"),
    ("blobs", "h16g", blobs(17, files=17), blobs(16), MANY | BIG, "strict"),
    ("blobs", "h16g", blobs(16, True), blobs(15, True), BIG, "strict"),
    ("inline-arguments", "h16g", INLINE, NAMED, {}, "strict"),
    ("concat", "h16g", function(CONCAT), RELU, {}, "strict"),
    ("gelu", "h16g", function(op("gelu(x=x)")), RELU, {}, "strict"),
    (
        "rsqrt",
        "h16g",
        function(op("rsqrt(x=x, epsilon=fp16(0x1p-20))")),
        function(op("sqrt(x=x)")),
        {},
        "strict",
    ),
    ("rejected-op", "h16g", function(op("l2_norm(x=x)")), RELU, {}, "strict"),
    ("conv-bias", "h16g", conv(2, bias=True), conv(2), None, "strict"),
    ("conv-weight", "h16g", conv(2, runtime=True), conv(2), None, "strict"),
    ("conv-channels", "h16g", conv(32000), conv(31999), None, "strict"),
    ("attention-mask", "h16g", attention(True), attention(False), {}, "strict"),
    (
        "multiply-reduced-by-zero",
        "h16g",
        reduced_times("0"),
        reduced_times("1"),
        {},
        "program",
    ),
    (
        "narrow-channels",
        "h16g",
        shaped("[1, 769, 1, 31]"),
        shaped("[1, 768, 1, 31]"),
        {},
        "strict",
    ),
    ("m3-op", "M3 Pro", function(op("cos(x=x)")), RELU, {}, "strict"),
]


@pytest.mark.parametrize(
    ("rule", "chip", "outside", "inside", "files", "limits"),
    TRIPS,
    ids=[f"{trip[0]}-{trip[1]}-{i}" for i, trip in enumerate(TRIPS)],
)
def test_programs(
    rule: str,
    chip: str,
    outside: str,
    inside: str,
    files: dict[str, bytes] | None,
    limits: str,
) -> None:
    def compiled(
        text: str, limits: str = limits, **options: object
    ) -> emulated.Program:
        given = files
        if given is None:  # the weight of a convolution
            shape = text.split("tensor<fp16, [")[2].split("]")[0]
            given = weights(int(np.prod([int(v) for v in shape.split(",")])))
        return emulated.Program(text, given, chip=chip, limits=limits, **options)

    compiled(inside)
    with pytest.raises(emulated.ProgramError) as error:
        compiled(outside)
    assert error.value.rule == rule
    entry = next(r for r in emulated.rules() if r["id"] == rule)
    assert error.value.stage == "compile"
    assert entry["stage"] in ("compile", "never")
    assert entry["source"] in str(error.value)
    if error.value.code == 1:
        assert "ANECCompile() FAILED" in str(error.value)
    else:
        assert "InvalidMILProgram" in str(error.value)
    assert entry["level"] == limits
    assert limits == "strict" or not entry["disputed"]
    compiled(outside, allow=[rule])
    compiled(outside, limits="off")
    if limits == "strict":
        compiled(outside, limits="program")


ENFORCED = [rule["id"] for rule in emulated.rules() if rule["id"] in CASES]
ELSEWHERE = {
    "address-window",  # of the files, at load
    "banks",  # of macOS 27
    "sole-identity",  # runs, and gives NaN
    "tile-poison",
    "uniform-surfaces",  # of the surfaces
}


@pytest.mark.parametrize("rule", sorted(set(ENFORCED) - ELSEWHERE))
def test_what_check_finds_is_refused(rule: str) -> None:
    chip, outside, inside = CASES[rule]
    stage = next(r["stage"] for r in emulated.rules() if r["id"] == rule)
    others = set(ENFORCED) - {rule}

    def answer(text: str) -> str:
        try:
            program = emulated.Program(text, chip=chip, limits="strict", allow=others)
            program({name: np.ones(p[1]) for name, p in program.inputs().items()})
        except emulated.EngineError as error:
            assert error.rule != rule or error.stage == (
                "evaluate" if stage == "evaluate" else "compile"
            )
            return error.rule
        return ""

    assert answer(outside) == rule
    assert answer(inside) != rule


def test_all_disputed_rules_can_be_left_out() -> None:
    emulated.Program(function(CONCAT), limits="strict", allow=["disputed"])
    with pytest.raises(emulated.ProgramError, match="rank"):
        emulated.Program(
            shaped("[1, 1, 1, 1, 1, 32]"), limits="strict", allow=["disputed"]
        )


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="allow has 'conact', need"):
        emulated.Program(RELU, allow=["conact"])


def test_width_and_sole_identity() -> None:
    narrow = shaped("[1, 8, 1, 31]")
    x = np.ones((1, 8, 1, 31))
    emulated.run(narrow, inputs={"x": x})
    with pytest.raises(emulated.EngineError, match="status=0x1d") as error:
        emulated.run(narrow, inputs={"x": x}, limits="strict")
    assert (error.value.rule, error.value.stage, error.value.code) == (
        "width",
        "evaluate",
        8,
    )
    assert not isinstance(error.value, ValueError)
    same = function(op("identity(x=x)"))
    x = np.ones((1, 8, 1, 32))
    assert np.isnan(emulated.run(same, inputs={"x": x}, limits="strict")["y"]).all()
    assert (emulated.run(same, inputs={"x": x})["y"] == 1).all()
    two = function(op("identity(x=x)") + op("relu(x=x)", X, "z"), outputs="y, z")
    assert (emulated.run(two, inputs={"x": x}, limits="strict")["y"] == 1).all()


def test_options() -> None:
    emulated.reset()
    assert emulated.options()["chip"] == "h16g"
    emulated.configure(chip="M2 Max", numerics="exact", allow=["concat"])
    assert emulated.options()["chip"] == "h14"
    emulated.configure(chip="h15g")
    options = emulated.options()
    assert (options["chip"], options["numerics"]) == ("h15g", "exact")
    assert options["allow"] == ["concat"]
    assert options["limits"] == "strict"
    for wrong in (
        {"chip": "h99"},
        {"numerics": "exakt"},
        {"allow": ["x"]},
        {"limits": "x"},
    ):
        with pytest.raises(ValueError, match="need"):
            emulated.configure(**wrong)
    assert emulated.options() == options
    emulated.reset()
    assert emulated.options()["numerics"] == "fast"


def test_environment(tmp_path: Path) -> None:
    script = (
        "from mlx_ane import emulated as e; o = e.options();"
        "print(o['chip'], o['numerics'], o['allow'], e._emulated.faults())"
    )
    environment = {
        "MLX_ANE_EMULATED": " chip=M5 Pro; numerics = exact;allow=concat, gelu;",
        "MLX_ANE_FAULTS": "nan:count=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        cwd=tmp_path,  # not in a source folder, whose package is not built
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[0] == (
        "h17 exact ['compiles', 'concat', 'gelu'] nan:count=1"
    )
    for wrong in (
        "chip=M9",
        "numerics=quick",
        "limits=all",
        "allow=x",
        "size=3",
        "h13",
    ):
        failed = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"MLX_ANE_EMULATED": wrong},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "need" in failed.stderr.splitlines()[-1], wrong


def test_inputs_are_checked() -> None:
    x = np.ones((1, 8, 1, 32))
    with pytest.raises(ValueError, match=r"input x .* is missing"):
        emulated.run(RELU)
    with pytest.raises(ValueError, match="does not take"):
        emulated.run(RELU, inputs={"x": x, "z": x})
    with pytest.raises(ValueError, match=r"need \[1, 8, 1, 32\]"):
        emulated.run(RELU, inputs={"x": x[0]})
    with pytest.raises(ValueError, match='need "fast"'):
        emulated.run(RELU, inputs={"x": x}, numerics="quick")
    with pytest.raises(ValueError, match="need one of main"):
        emulated.run(RELU, inputs={"x": x}, function="other")


def test_functions_of_a_program() -> None:
    first = RELU[: RELU.rindex("}")]
    second = (
        first[first.index("func") :].replace("main", "second").replace("relu", "abs")
    )
    x = np.full((1, 8, 1, 32), -2.0)
    text = first + second + "}"
    assert (emulated.run(text, inputs={"x": x})["y"] == 0).all()
    assert (emulated.run(text, inputs={"x": x}, function="second")["y"] == 2).all()


HOSTILE = {
    "undefined": function(op("relu(x=q)")),
    "cycle": function(op("relu(x=y)")),
    "twice": function(op("relu(x=x)") + op("relu(x=x)")),
    "unknown": function(op("frobnicate(x=x)")),
    "missing": function(op("add(x=x)")),
    "no result": function(op("relu(x=x)") + 'relu(x=x)[name=string("z")];'),
    "no output": function(op("relu(x=x)"), outputs="z"),
    "negative": shaped("[1, -8, 1, 32]"),
    "huge": shaped("[1048576, 1048576, 1048576]"),
    "overflow": shaped("[4611686018427387904, 4]"),
    "too large": shaped("[32768, 32768, 32]"),
    "string arithmetic": function(
        const("s", "string", 'string("a")') + op("add(x=x, y=s)")
    ),
    "mixed types": function(const("s", "int32", "int32(1)") + op("add(x=x, y=s)")),
    "fill": function(
        const("s", "tensor<int32, [2]>", "tensor<int32, [2]>([65536, 65536])")
        + const("v", "fp16", "fp16(1)")
        + op("fill(shape=s, value=v)", "tensor<fp16, [65536, 65536]>")
    ),
    "splits": function(
        const("n", "int32", "int32(2147483647)")
        + const("a", "int32", "int32(1)")
        + op("split(x=x, num_splits=n, axis=a)")
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError)) as error:
        emulated.run(HOSTILE[name], inputs={"x": np.ones((1, 8, 1, 32))}, limits="off")
    assert "[mlx_ane" in str(error.value)


def test_unknown_operations_are_named() -> None:
    with pytest.raises(emulated.ProgramError, match=r"InvalidMILProgram.*frobnicate"):
        emulated.Program(HOSTILE["unknown"])


def test_memory_budget() -> None:
    text = shaped("[64, 1024]")
    emulated.Program(text, memory_budget=1 << 20)
    with pytest.raises(emulated.EngineError, match="budget") as error:
        emulated.Program(text, memory_budget=1 << 18)
    assert error.value.rule == "memory-budget"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"@model_path/w.bin": b""}, "outside the file"),
        ({"@model_path/w.bin": b"\0" * 1024}, "0xDEADBEEF"),
        ({"@model_path/w.bin": weights(255)["@model_path/w.bin"]}, "bytes"),
        ({"@model_path/v.bin": b""}, "was not given"),
    ],
)
def test_weight_files(change: dict[str, bytes], message: str | None) -> None:
    files = change or weights(256)
    if message is None:
        emulated.Program(blobs(1), files)
        return
    with pytest.raises(emulated.ProgramError, match=message):
        emulated.Program(blobs(1), files)
