"""mil.check: for every rule a program that trips it and one just inside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mlx_ane import mil

ROOT = Path(__file__).parents[1]
X = "tensor<fp16, [1, 64, 1, 32]>"
S = "tensor<fp16, [1, 1, 64, 64]>"


def program(
    body: str, inputs: str = f"{X} x", outputs: str = "y", opset: str = "ios18"
) -> str:
    return (
        f"program(1.3) {{ func main<{opset}>({inputs}) {{ {body} }} -> ({outputs}); }}"
    )


def op(call: str, result: str = X, inputs: str = f"{X} x", opset: str = "ios18") -> str:
    return program(f'{result} y = {call}[name = string("y")];', inputs, opset=opset)


def const(dtype: str, name: str, value: str) -> str:
    return (
        f'{dtype} {name} = const()[name = string("{name}"), val = {dtype}({value})]; '
    )


def blob(name: str, path: str = "w.bin", offset: int = 64, count: int = 64) -> str:
    return const(
        f"tensor<fp16, [{count}]>",
        name,
        f'BLOBFILE(path = string("@model_path/{path}"), offset = uint64({offset}))',
    )


def blobs(count: int) -> str:
    return "".join(blob(f"w{i}", f"{i}.bin") for i in range(count))


def conv(weight: str, extra: str = "", groups: int = 1) -> str:
    shape = "[1, 32, 1, 32]"
    return (
        const("string", "t", '"valid"')
        + const("tensor<int32, [2]>", "s", "[1, 1]")
        + const("tensor<int32, [4]>", "p", "[0, 0, 0, 0]")
        + const("int32", "g", str(groups))
        + f"tensor<fp16, {shape}> y = conv(x = x, weight = {weight}, pad_type = t, "
        f'strides = s, dilations = s, pad = p, groups = g{extra})[name = string("y")];'
    )


def weight(out: int = 32, width: int = 1) -> str:
    dtype = f"tensor<fp16, [{out}, 64, 1, {width}]>"
    path = 'path = string("@model_path/w.bin")'
    return const(dtype, "w", f"BLOBFILE({path}, offset = uint64(64))")


def blockwise(data: str, scale: str) -> str:
    return (
        f"tensor<fp16, [2, 2]> w = constexpr_blockwise_shift_scale(data = {data}, "
        f'scale = {scale})[name = string("w")]; '
        f'{X} y = relu(x = x)[name = string("y")];'
    )


def slice_at(begin: int) -> str:
    return program(
        const("tensor<int32, [4]>", "b", f"[0, 0, 0, {begin}]")
        + const("tensor<int32, [4]>", "n", "[1, 64, 1, 32]")
        + f'{X} y = slice_by_size(x = x, begin = b, size = n)[name = string("y")];',
        "tensor<fp16, [1, 64, 1, 64]> x",
    )


def joined_slices(begin: int) -> str:
    half = "tensor<fp16, [1, 64, 1, 16]>"
    return program(
        const("tensor<int32, [4]>", "b", f"[0, 0, 0, {begin}]")
        + const("tensor<int32, [4]>", "c", "[0, 0, 0, 16]")
        + const("tensor<int32, [4]>", "n", "[1, 64, 1, 16]")
        + const("int32", "i", "3")
        + f'{half} p = slice_by_size(x = x, begin = b, size = n)[name = string("p")]; '
        + f'{half} q = slice_by_size(x = x, begin = c, size = n)[name = string("q")]; '
        + f'{X} y = concat(values = (p, q), axis = i)[name = string("y")];'
    )


def mul(a: str, b: str, result: str, call: str = "mul", dtype: str = "fp16") -> str:
    return op(
        f"{call}(x = a, y = b)",
        f"tensor<{dtype}, {result}>",
        f"tensor<{dtype}, {a}> a, tensor<{dtype}, {b}> b",
    )


def reduced(axis: int, factor: str = "1") -> str:
    return program(
        const("tensor<int32, [1]>", "a", f"[{axis}]")
        + const("bool", "k", "true")
        + const("fp16", "f", factor)
        + "tensor<fp16, [1, 64, 64, 32]> r = "
        + 'reduce_sum(x = x, axes = a, keep_dims = k)[name = string("r")]; '
        + 'tensor<fp16, [1, 64, 64, 32]> y = mul(x = r, y = f)[name = string("y")];',
        "tensor<fp16, [1, 64, 64, 32]> x",
    )


def matmul(depth: int) -> str:
    return program(
        const("bool", "n", "false")
        + "tensor<fp16, [1, 1, 32, 32]> y = matmul(x = a, y = b, transpose_x = n, "
        'transpose_y = n)[name = string("y")];',
        f"tensor<fp16, [1, 1, 32, {depth}]> a, tensor<fp16, [1, 1, {depth}, 32]> b",
    )


def port(shape: str, dtype: str = "fp16") -> str:
    kind = f"tensor<{dtype}, {shape}>"
    return op("relu(x = x)", kind, f"{kind} x")


def sdpa(mask: str) -> str:
    return op(
        f"scaled_dot_product_attention(query = x, key = x, value = x{mask})",
        S,
        f"{S} x",
    )


RELU = op("relu(x = x)")
VERBOSE = mil.parse(RELU).text("ios16")
Y = f'{X} y = relu(x = x)[name = string("y")];'
TWO_OUTPUTS = f'{X} a = relu(x = x)[name = string("a")]; {X} y = '

#: rule: (chip, program that trips it, program just inside)
CASES: dict[str, tuple[str, str, str]] = {
    "address-window": (
        "h16g",
        program(blob("w", count=2**31 + 8) + Y),
        program(blob("w", count=2**31) + Y),
    ),
    "attention-mask": ("h16g", sdpa(", attn_mask = x"), sdpa("")),
    "axis": ("h16g", port("[1, 1, 65568, 32]"), port("[1, 1, 65536, 32]")),
    "banks": ("h16g", RELU[:-1] + RELU[14:].replace("main", "b"), RELU),
    "blob-alignment": (
        "h16g",
        program(blob("w", offset=72) + Y),
        program(blob("w", offset=128) + Y),
    ),
    "blob-offset": (
        "h16g",
        program(blob("w", offset=0) + Y),
        program(blob("w", offset=2**32 - 64) + Y),
    ),
    "blob-path": (
        "h16g",
        program(blob("w").replace("@model_path/", "") + Y),
        program(blob("w") + Y),
    ),
    "blobs": ("h16g", program(blobs(17) + Y), program(blobs(16) + Y)),
    "blockwise-int4": (
        "h16g",
        program(
            blockwise("tensor<int4, [2, 2]>([1, 2, 3, 4])", "tensor<fp16, [2]>([1, 1])")
        ),
        program(
            blockwise("tensor<int8, [2, 2]>([1, 2, 3, 4])", "tensor<fp16, [2]>([1, 1])")
        ),
    ),
    "cast": (
        "h14",
        op("cast(x = x, dtype = d)"),
        op("relu(x = x)"),
    ),
    "cast-dtype": (
        "h16g",
        op("cast(x = x, dtype = d)", X.replace("fp16", "int32")),
        op("cast(x = x, dtype = d)", X.replace("fp16", "int16")),
    ),
    "channels": ("h16g", port("[1, 65537, 1, 32]"), port("[1, 65536, 1, 32]")),
    "chunks": (
        "h13",
        program(blob("w") + blob("v", offset=256) + Y),
        program(blob("w") + blob("v", "v.bin", 256) + Y),
    ),
    "concat": (
        "h16g",
        op("concat(values = (x, x), axis = a)", "tensor<fp16, [1, 128, 1, 32]>"),
        RELU,
    ),
    "concat-inputs": (
        "h16g",
        op("concat(values = (x, x, x), axis = a)"),
        op("concat(values = (x, x), axis = a)"),
    ),
    "const-type": (
        "h16g",
        program('fp16 c = const()[name = string("c"), val = fp32(1)];' + Y),
        program('fp16 c = const()[name = string("c"), val = fp16(1)];' + Y),
    ),
    "const-value": (
        "h16g",
        program('fp16 c = const()[name = string("c")];' + Y),
        program('fp16 c = const()[name = string("c"), val = fp16(1)];' + Y),
    ),
    "consumed-output": (
        "h16g",
        program(TWO_OUTPUTS + 'relu(x = a)[name = string("y")];', outputs="a, y"),
        program(TWO_OUTPUTS + 'identity(x = a)[name = string("y")];', outputs="a, y"),
    ),
    "conv-bias": (
        "h16g",
        program(
            weight()
            + const("tensor<fp16, [32]>", "b", f"[{'0, ' * 31}0]")
            + conv("w", ", bias = b")
        ),
        program(weight() + conv("w")),
    ),
    "conv-channels": (
        "h16g",
        program(weight(32000) + conv("w")),
        program(weight(31999) + conv("w")),
    ),
    "conv-weight": (
        "h16g",
        program(conv("w"), f"{X} x, tensor<fp16, [32, 64, 1, 1]> w"),
        program(weight() + conv("w")),
    ),
    "conv-weight-grouped": (
        "h16g",
        program(conv("w", groups=2), f"{X} x, tensor<fp16, [32, 32, 1, 1]> w"),
        program(conv("w"), f"{X} x, tensor<fp16, [32, 64, 1, 1]> w"),
    ),
    "deep-contraction": ("h16g", matmul(1345), matmul(1344)),
    "dialect": ("h13", RELU, VERBOSE),
    "duplicate-function": (
        "h16g",
        RELU[:-1] + RELU[14:],
        RELU[:-1] + RELU[14:].replace("main", "b"),
    ),
    "empty-axis": ("h16g", port("[1, 0, 1, 32]"), port("[1, 1, 1, 32]")),
    "empty-name": ("h16g", RELU.replace('"y"', '""'), RELU),
    "fp32-io": ("h14", port("[1, 64, 1, 32]", "fp32"), RELU),
    "gelu": ("h16g", op("gelu(x = x, mode = m)"), op("tanh(x = x)")),
    "group-scale": (
        "h16g",
        program(
            blockwise(
                "tensor<int8, [2, 2]>([1, 2, 3, 4])",
                "tensor<fp16, [2, 2]>([1, 1, 1, 1])",
            )
        ),
        program(
            blockwise(
                "tensor<int8, [2, 2]>([1, 2, 3, 4])", "tensor<fp16, [2, 1]>([1, 1])"
            )
        ),
    ),
    "inaccurate-op": ("h16g", op("softplus(x = x)"), op("exp(x = x)")),
    "inline-arguments": (
        "h16g",
        matmul(32).replace("transpose_x = n", "transpose_x = bool(false)"),
        matmul(32),
    ),
    "inline-values": (
        "h16g",
        op("softmax(x = x, axis = int32(-1))"),
        program(
            const("int32", "a", "-1")
            + f'{X} y = softmax(x = x, axis = a)[name = string("y")];'
        ),
    ),
    "int8-io": (
        "h16g",
        port("[1, 64, 1, 32]", "int8"),
        port("[1, 64, 1, 32]", "fp32"),
    ),
    "io-dtype": (
        "h16g",
        port("[1, 64, 1, 32]", "int32"),
        port("[1, 64, 1, 32]", "fp32"),
    ),
    "kernel-width": (
        "h13",
        program(weight(width=14) + conv("w")),
        program(weight(width=13) + conv("w")),
    ),
    "later-chip": ("h14", op("sin(x = x)"), op("exp(x = x)")),
    "lone-op": (
        "h15",
        op("reshape(x = x, shape = s)"),
        program(
            f'{X} r = reshape(x = x, shape = s)[name = string("r")]; '
            f'{X} y = relu(x = r)[name = string("y")];'
        ),
    ),
    "m1-broadcast": (
        "M1",
        mul("[1, 64, 96]", "[1, 64, 1]", "[1, 64, 96]"),
        mul("[1, 64, 96]", "[1, 1, 96]", "[1, 64, 96]"),
    ),
    "m1-contraction": ("M1 Pro", matmul(48), matmul(64)),
    "m1-op": ("M1", op("pow(x = x, y = e)"), op("sqrt(x = x)")),
    "m3-op": ("M3 Pro", op("cos(x = x)"), op("atan(x = x)")),
    "missing-argument": (
        "h16g",
        op("log(x = x)"),
        op("log(x = x, epsilon = e)"),
    ),
    "missing-epsilon": (
        "h15",
        op("inverse(x = x)"),
        op("inverse(x = x, epsilon = e)"),
    ),
    "missing-name": ("h16g", program(f"{X} y = relu(x = x);"), RELU),
    "mixed-dialects": (
        "h16g",
        program(const("fp16", "c", "1") + Y.replace("string(", "tensor<string, []>(")),
        program(const("fp16", "c", "1") + Y),
    ),
    "mul-batch": (
        "M3 Pro",
        mul("[1, 2, 1, 32]", "[4, 2, 1, 32]", "[4, 2, 1, 32]"),
        mul("[1, 2, 1, 32]", "[4, 2, 1, 32]", "[4, 2, 1, 32]", "add"),
    ),
    "multiply-reduced-by-zero": ("h16g", reduced(3, "0"), reduced(3, "1")),
    "narrow-channels": ("h16g", port("[1, 769, 1, 31]"), port("[1, 769, 1, 32]")),
    "newer-op": (
        "h16g",
        op("read_state(input = x)", opset="ios17"),
        op("read_state(input = x)"),
    ),
    "no-function": ("h16g", "program(1.3) { }", RELU),
    "no-output": ("h16g", program(Y, outputs=""), RELU),
    "no-path": ("h16g", op("tan(x = x)"), op("tanh(x = x)")),
    "operand-dtype": (
        "M3 Pro",
        mul("[1, 2, 1, 32]", "[1, 2, 1, 32]", "[1, 2, 1, 32]", "add", "int8"),
        mul("[1, 2, 1, 32]", "[1, 2, 1, 32]", "[1, 2, 1, 32]", "add", "fp32"),
    ),
    "opset": ("h16g", op("relu(x = x)", opset="ios14"), RELU),
    "port-order": (
        "h16g",
        op("add(x = b, y = a)", inputs=f"{X} b, {X} a"),
        op("add(x = b, y = a)", inputs=f"{X} a, {X} b"),
    ),
    "rank": (
        "h16g",
        port("[1, 1, 1, 1, 1, 32]"),
        port("[1, 1, 1, 1, 32]"),
    ),
    "redefined-value": ("h16g", program(Y + Y), RELU),
    "reduce-channels": ("h16g", reduced(1), reduced(2)),
    "rejected-op": ("h16g", op("cumsum(x = x)"), op("exp(x = x)")),
    "row-stride": ("h16g", port("[1, 64, 1, 33]"), port("[1, 64, 1, 64]")),
    "rsqrt": ("h16g", op("rsqrt(x = x)"), op("sqrt(x = x)")),
    "shape-mismatch": (
        "h16g",
        op("relu(x = x)", "tensor<fp16, [1, 32, 1, 64]>"),
        RELU,
    ),
    "slice-concat": ("M3", joined_slices(8), joined_slices(0)),
    "slice-width": ("h14", slice_at(32), slice_at(0)),
    "sole-identity": ("h16g", op("identity(x = x)"), RELU),
    "tile-poison": ("h16g", op("tile(x = x, reps = r)"), RELU),
    "undefined-value": ("h16g", op("relu(x = z)"), RELU),
    "uniform-surfaces": (
        "h16g",
        op("add(x = x, y = z)", inputs=f"{X} x, tensor<fp16, [1, 1, 1, 32]> z"),
        op("add(x = x, y = z)", inputs=f"{X} x, {X} z"),
    ),
    "unknown-argument": ("h16g", op("relu(x = x, slope = x)"), RELU),
    "unknown-axis": ("h16g", port("[1, ?, 1, 32]"), RELU),
    "unknown-op": ("h16g", op("ReLU(x = x)"), RELU),
    "width": ("h16g", port("[1, 64, 1, 31]"), port("[1, 64, 1, 32]")),
}
MACOS = {"banks": "27"}


def found(text: str, chip: str, macos: str = "26", **options: list[str]) -> set[str]:
    return {finding.rule for finding in mil.check(text, chip, macos, **options)}


@pytest.mark.parametrize("rule", sorted(CASES))
def test_rule_trips_and_allows(rule: str) -> None:
    chip, outside, inside = CASES[rule]
    macos = MACOS.get(rule, "26")
    assert rule in found(outside, chip, macos)
    assert rule not in found(inside, chip, macos)
    assert rule not in found(outside, chip, macos, allow=[rule])


def test_every_rule_has_a_case() -> None:
    assert {rule.id for rule in mil.rules()} == set(CASES)


def test_clean_programs_have_no_findings() -> None:
    assert mil.check(RELU, "h16g") == []
    assert mil.check(VERBOSE, "h13") == []


def test_numbers_depend_on_the_chip() -> None:
    long = port("[1, 1, 16416, 32]")
    assert "axis" in found(long, "h15") and "axis" not in found(long, "h16g")
    wide = program(weight(width=15) + conv("w"))
    assert "kernel-width" in found(wide, "h13")
    assert "kernel-width" not in found(wide, "h14")
    assert "slice-width" not in found(slice_at(32), "h15")
    assert "slice-concat" not in found(joined_slices(8), "h16g")
    assert "banks" not in found(CASES["banks"][1], "h16g", "26.5")


def test_scalar_operand_lowers_the_budget_of_weight_files() -> None:
    scaled = const("fp16", "f", "2") + f'{X} y = mul(x = x, y = f)[name = string("y")];'
    assert "blobs" in found(program(blobs(16) + scaled), "h16g")
    assert "blobs" not in found(program(blobs(15) + scaled), "h16g")


def test_disputed_rules_can_be_left_out_together() -> None:
    text = CASES["concat"][1]
    assert {"concat"} <= found(text, "h16g")
    kept = found(text, "h16g", allow=["disputed"])
    disputed = {rule.id for rule in mil.rules() if rule.disputed}
    assert "undefined-value" in kept and not kept & disputed


def test_finding_says_where_what_why_and_who() -> None:
    finding = next(f for f in mil.check(CASES["rsqrt"][1]) if f.rule == "rsqrt")
    assert finding.where == "main, line 1: y = rsqrt"
    assert finding.severity == "error" and finding.line == 1
    assert "pow(x, -0.5)" in finding.why and "Orion" in finding.source
    assert str(finding).startswith("error rsqrt (main, line 1: y = rsqrt): ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chip": "m7"}, "need one of h13 to h18 with any suffix, or M1 to M6"),
        ({"macos": "soon"}, "macos is 'soon'"),
        ({"allow": ["conact"]}, "allow has 'conact'"),
    ],
)
def test_unknown_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mil.check(RELU, **options)  # type: ignore[arg-type]


def test_what_authors_report_running_is_disputed_or_no_finding() -> None:
    def undisputed(text: str, chip: str) -> set[str]:
        return found(text, chip, allow=["disputed"])

    many = program(blob("w") + blob("v", offset=256) + blobs(30) + Y)
    assert undisputed(RELU, "M1") == undisputed(RELU, "M2 Max") == set()
    assert undisputed(many, "M1") == undisputed(many, "M3 Max") == set()
    assert undisputed(CASES["sole-identity"][1], "M3 Pro") == set()
    assert "group-scale" not in undisputed(CASES["group-scale"][1], "h17s")
    assert undisputed(slice_at(32), "M3 Ultra") == set()
    for rule in mil.rules():
        assert rule.disputed == bool(rule.against)


def test_sources_are_those_of_the_page() -> None:
    page = (ROOT / "docs/limits.md").read_text(encoding="utf-8")
    table = page[page.index("## Sources") :]
    names = re.findall(r"^\| ([\w -]+?)(?: \((\w+)\))? \|", table, re.MULTILINE)
    known = tuple(name for pair in names for name in pair if name not in ("", "name"))
    assert {"ane-train", "splash", "TurboCider", "H3"} <= set(known)
    for rule in mil.rules():
        for source in rule.source.split("; "):
            assert source.startswith((*known, "a report from M")), rule.id


def test_constants_of_constexpr_may_have_any_rank() -> None:
    table = "tensor<fp16, [1, 1, 1, 1, 1, 16]>"
    lut = const(table, "l", f"[{', '.join(['0'] * 16)}]")
    dense = f'{X} y = constexpr_lut_to_dense(indices = i, lut = l)[name = string("y")];'
    assert "rank" not in found(program(lut + dense), "h16g")
    assert "rank" in found(
        program(lut + f'{X} y = mul(x = x, y = l)[name = string("y")];'), "h16g"
    )


def test_names_of_opsets_and_attributes() -> None:
    core = RELU.replace("<ios18>", "<CoreML8>").replace(
        '("y")]', '("y"), milId = int32(3)]'
    )
    assert mil.check(core, "h16g") == []
    assert "opset" in found(RELU.replace("ios18", "CoreML4"), "h16g")
    old = op("read_state(input = x)", opset="CoreML7")
    assert "newer-op" in found(old, "h16g")
    assert "newer-op" not in found(old.replace("CoreML7", "CoreML8"), "h16g")


def test_integers_are_stored_not_computed_with() -> None:
    mixed = program(weight() + conv("w"), X.replace("fp16", "int8") + " x")
    assert "operand-dtype" in found(mixed, "M3 Pro")
    assert "operand-dtype" not in found(program(weight() + conv("w")), "M3 Pro")


@pytest.mark.parametrize(
    ("chip", "same"),
    [("M2 Max", "h14"), ("m2-max", "h14g"), ("M1_ULTRA", "h13"), ("H14C", "M2Pro")],
)
def test_chips_by_name_and_by_architecture(chip: str, same: str) -> None:
    for text in (slice_at(32), port("[1, 1, 16416, 32]"), RELU, matmul(48)):
        assert mil.check(text, chip) == mil.check(text, same)
    assert found(slice_at(32), chip) != found(slice_at(32), "M4")


def test_findings_and_names_are_bounded() -> None:
    name = "n" * 5_000
    lines = "".join(f"{X} {name}{i} = tan(x = {name});" for i in range(700))
    findings = mil.check(program(lines))
    assert len(findings) == 1000
    assert max(len(f.where) + len(f.what) for f in findings) < 1000


@pytest.mark.parametrize(
    ("call", "inputs", "right", "wrong"),
    [
        ("add(x = a, y = b)", ("[2, 1, 3]", "[4, 1]"), "[2, 4, 3]", "[2, 4, 1]"),
        ("transpose(x = a, perm = p)", ("[2, 3, 4]", "[1]"), "[4, 2, 3]", "[2, 3, 4]"),
        ("reshape(x = a, shape = p)", ("[2, 6]", "[1]"), "[4, 3, 1]", "[4, 2, 1]"),
        ("concat(values = (a, b), axis = i)", ("[2, 6]", "[2, 1]"), "[2, 7]", "[2, 6]"),
        ("softmax(x = a, axis = i)", ("[2, 6]", "[1]"), "[2, 6]", "[6, 2]"),
    ],
)
def test_declared_shapes(
    call: str, inputs: tuple[str, str], right: str, wrong: str
) -> None:
    a, b = (f"tensor<fp16, {shape}>" for shape in inputs)
    for declared, agrees in ((right, True), (wrong, False)):
        text = program(
            const("tensor<int32, [3]>", "p", "[2, 0, 1]")
            + const("int32", "i", "-1")
            + f'tensor<fp16, {declared}> y = {call}[name = string("y")];',
            f"{a} a, {b} b",
        )
        assert ("shape-mismatch" in found(text, "h16g")) != agrees


def test_operands_that_do_not_fit() -> None:
    for call in ("add(x = a, y = b)", "matmul(x = a, y = b)"):
        text = op(call, inputs="tensor<fp16, [2, 3]> a, tensor<fp16, [4, 2]> b")
        what = [f.what for f in mil.check(text) if f.rule == "shape-mismatch"]
        assert what == ["the operands are fp16 [2, 3] and fp16 [4, 2]"]


def test_matmul_shapes_follow_numpy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        flip_x, flip_y = generator.integers(0, 2, 2)
        m, k, n = generator.integers(1, 9, 3)
        a, b = np.zeros((2, 1, m, k)), np.zeros((3, k, n))
        shape = list((a @ b).shape)
        a = a.swapaxes(-1, -2) if flip_x else a
        b = b.swapaxes(-1, -2) if flip_y else b
        text = program(
            const("bool", "t", ["false", "true"][flip_x])
            + const("bool", "u", ["false", "true"][flip_y])
            + f"tensor<fp16, {shape}> y = matmul(x = a, y = b, transpose_x = t, "
            f'transpose_y = u)[name = string("y")];',
            f"tensor<fp16, {list(a.shape)}> a, tensor<fp16, {list(b.shape)}> b",
        )
        assert "shape-mismatch" not in found(text, "h16g")
