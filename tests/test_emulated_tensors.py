"""Operations that move, make or pick values, against plain NumPy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_emulated_ops import Case, check, integers, name_of, normal

from mlx_ane import emulated, mil

X = normal(2, 8, 4, 6)
I = integers(-20, 20, 3, 8)  # noqa: E741


def moved(op: str, want: np.ndarray, x: np.ndarray = X, **arguments: Any) -> Case:
    return Case(op, {"x": x}, np.ascontiguousarray(want), arguments)


def blocks(x: np.ndarray, split: list[int], perm: list[int], out: list[int]) -> Any:
    return x.reshape(split).transpose(perm).reshape(out)


SHAPES = [
    moved("identity", X),
    moved("reshape", X.reshape(4, 4, 24), shape=[4, -1, 24]),
    moved("reshape", X.reshape(2, 8, 24), shape=[0, 8, 24]),
    Case(
        "reshape_like",
        {"x": X, "r": normal(16, 4), "s": normal(5, 6)},
        X.reshape(16, 4, 6),
        {"begins": [0, 1], "ends": [2, 2], "end_masks": np.array([False, False])},
        {"x": "x", "ref_tensors": ["r", "s"]},
    ),
    moved("expand_dims", X[0][:, None, :, :, None], X[0].copy(), axes=[1, -1]),
    moved("squeeze", X[0], X[0][:, None, :, :, None].copy(), axes=[1, 4]),
    moved("squeeze", X, X[:, None].copy()),
    moved("flatten2d", X.reshape(16, 24), axis=2),
    moved("shape", np.array([2, 8, 4, 6], np.int32)),
    moved("transpose", X.transpose(0, 2, 3, 1), perm=[0, 2, 3, 1]),
    moved("transpose", X.transpose(3, 1, 2, 0), perm=[-1, 1, 2, 0]),
    moved("cast", X.astype(np.float32), dtype="fp32"),
    moved("cast", (X * 9).astype(np.int32), X * np.float16(9), dtype="int32"),
    moved("cast", (X * 9).astype(np.int8), X * np.float16(9), dtype="int8"),
    moved("cast", X > 0, (X > 0).astype(np.float16), dtype="bool"),
    moved("cast", I.astype(np.float16), I, dtype="fp16"),
    moved("cast", I.astype(np.uint8), I, dtype="uint8"),
    Case(
        "constexpr_cast",
        {},
        X[0, 0].astype(np.float32),
        {"source_val": X[0, 0], "output_dtype": "fp32"},
        {},
    ),
    moved(
        "depth_to_space",
        blocks(X, [2, 2, 2, 2, 4, 6], [0, 3, 4, 1, 5, 2], [2, 2, 8, 12]),
        block_size=2,
    ),
    moved(
        "space_to_depth",
        blocks(X, [2, 8, 2, 2, 3, 2], [0, 3, 5, 1, 2, 4], [2, 32, 2, 3]),
        block_size=2,
    ),
    moved(
        "pixel_shuffle",
        blocks(X, [2, 2, 2, 2, 4, 6], [0, 1, 4, 2, 5, 3], [2, 2, 8, 12]),
        upscale_factor=2,
    ),
    moved(
        "pixel_unshuffle",
        blocks(X, [2, 8, 2, 2, 3, 2], [0, 1, 3, 5, 2, 4], [2, 32, 2, 3]),
        downscale_factor=np.uint32(2),
    ),
]

MASK = np.array([False, True, False, False])
UPDATED_IMAGE = X[1].copy()
UPDATED_IMAGE[..., ::-2] = normal(8, 4, 3, seed=9)
SLICES = [
    moved(
        "slice_by_index",
        X[1:2, 2:7:2, 3:0:-1, -3:],
        begin=[1, 2, 3, -3],
        end=[2, 7, 0, 6],
        stride=[1, 2, -1, 1],
    ),
    moved(
        "slice_by_index",
        X[0, :, 1, 2:5],
        begin=[0, 5, 1, 2],
        end=[1, 6, 2, 5],
        begin_mask=MASK,
        end_mask=MASK,
        squeeze_mask=np.array([True, False, True, False]),
    ),
    moved("slice_by_size", X[1:2, :, 2:3, 1:5], begin=[1, 0, 2, 1], size=[1, -1, 1, 4]),
    Case(
        "slice_by_size",
        {"x": X, "begin": np.array([1, 3, 0, 2], np.int32)},
        X[1:2, 3:6, :, 2:4],
        {"size": [1, 3, 4, 2]},
    ),
    Case(
        "slice_update",
        {"x": X, "update": normal(2, 8, 2, 6, seed=9)},
        np.concatenate([X[:, :, :1], normal(2, 8, 2, 6, seed=9), X[:, :, 3:]], 2),
        {"begin": [0, 0, 1, 0], "end": [2, 8, 3, 6]},
    ),
    Case(
        "slice_update",
        {"x": X, "update": normal(8, 4, 3, seed=9)},
        np.stack([X[0], UPDATED_IMAGE]),
        {
            "begin": [1, 0, 0, 5],
            "end": [2, 8, 4, 0],
            "stride": [1, 1, 1, -2],
            "end_mask": np.array([False, False, False, True]),
            "squeeze_mask": np.array([True, False, False, False]),
        },
    ),
    moved("crop", X[:, :, 1:2, 2:5], crop_height=[1, 2], crop_width=[2, 1]),
    moved("reverse", X[:, ::-1, :, ::-1], axes=[1, 3]),
    Case(
        "reverse_sequence",
        {"x": X},
        np.stack(
            [
                np.concatenate([x[n - 1 :: -1], x[n:]])
                for x, n in zip(X, (3, 8), strict=True)
            ]
        ),
        {"lengths": [3, 8], "seq_axis": 1, "batch_axis": 0},
    ),
    moved("tile", np.tile(X, (1, 2, 1, 3)), reps=[1, 2, 1, 3]),
    moved(
        "sliding_windows",
        np.stack([X[:, :, :, i : i + 3] for i in (0, 2)], 3),
        axis=3,
        size=3,
        stride=2,
    ),
    Case(
        "concat",
        {"a": X, "b": X[:, :3].copy(), "c": normal(2, 1, 4, 6, seed=5)},
        np.concatenate([X, X[:, :3], normal(2, 1, 4, 6, seed=5)], 1),
        {"axis": 1, "interleave": False},
        {"values": ["a", "b", "c"]},
    ),
    Case(
        "concat",
        {"a": X, "b": -X},
        np.stack([X, -X], 2).reshape(2, 16, 4, 6),
        {"axis": 1, "interleave": True},
        {"values": ["a", "b"]},
    ),
    Case(
        "stack",
        {"a": X, "b": -X},
        np.stack([X, -X], 2),
        {"axis": 2},
        {"values": ["a", "b"]},
    ),
    Case(
        "split",
        {"x": X},
        tuple(np.split(X, 2, 3)),
        {"axis": -1, "num_splits": 2},
    ),
    Case(
        "split",
        {"x": X},
        (X[:, :3], X[:, 3:]),
        {"axis": 1, "split_sizes": [3, 5]},
    ),
]

SCALAR = np.float16(1.5)
ON = {
    "one_hot_vector_size": 9,
    "axis": 1,
    "on_value": SCALAR,
    "off_value": np.float16(-1),
}
GENERATORS = [
    Case("fill", {}, np.full((2, 3), SCALAR), {"shape": [2, 3], "value": SCALAR}, {}),
    Case("fill_like", {"ref_tensor": X}, np.full_like(X, SCALAR), {"value": SCALAR}),
    Case(
        "range_1d",
        {},
        np.arange(2, 11, 3, dtype=np.int32),
        {"start": 2, "end": 11, "step": 3},
        {},
    ),
    Case(
        "one_hot",
        {"indices": integers(0, 9, 2, 5)},
        np.moveaxis(
            np.where(np.eye(9)[integers(0, 9, 2, 5)], SCALAR, -1), -1, 1
        ).astype(np.float16),
        ON,
    ),
    moved("band_part", np.triu(np.tril(X, 2), -1), lower=1, upper=2),
    moved("band_part", np.tril(X), lower=-1, upper=0),
    moved("cumsum", np.cumsum(X.astype(float), 2).astype(np.float16), axis=2),
    moved(
        "cumsum",
        (np.cumsum(X[..., ::-1].astype(float), 3)[..., ::-1] - X).astype(np.float16),
        axis=-1,
        exclusive=True,
        reverse=True,
    ),
    moved("argsort", np.argsort(-X, 1).astype(np.int32), axis=1),
    moved("argsort", np.argsort(X, 3).astype(np.int32), axis=-1, ascending=True),
    moved("topk", None, k=3, axis=1),
    moved("topk", None, k=2, axis=-1, ascending=True),
    moved(
        "pad",
        np.pad(X, ((0, 0), (0, 0), (1, 2), (3, 0)), constant_values=1.5),
        pad=[1, 2, 3, 0],
        mode="constant",
        constant_val=SCALAR,
    ),
    moved(
        "pad",
        np.pad(X, ((0, 0), (0, 0), (1, 2), (3, 0)), "reflect"),
        pad=[0, 0, 0, 0, 1, 2, 3, 0],
        mode="reflect",
    ),
    moved(
        "pad",
        np.pad(X, ((0, 0), (0, 0), (0, 0), (2, 4)), "edge"),
        pad=[2, 4],
        mode="replicate",
    ),
]
for case in GENERATORS:
    if case.op == "topk":
        sign = 1 if case.arguments.get("ascending") else -1
        axis, k = case.arguments["axis"], case.arguments["k"]
        order = np.argsort(sign * X, axis, kind="stable").take(range(k), axis)
        case.want = (np.take_along_axis(X, order, axis), order.astype(np.int32))

PICKS = integers(-8, 8, 3, 2)
ALONG = integers(0, 8, 2, 5, 4, 6)
POINTS = integers(0, 4, 3, 2)[:, ::1] % [2, 8]
POINTS = POINTS.astype(np.int32)
DATA = normal(5, 7)
ROWS = np.array([4, 0, 4], np.int32)
SPREAD = np.array([[1, 2, 3, 4, 0, 1, 2], [4, 4, 4, 4, 3, 3, 3]], np.int32)


def scattered(mode: str) -> np.ndarray:
    ufunc: Any = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "max": np.maximum,
        "min": np.minimum,
    }[mode]
    out = DATA.astype(np.float64)
    ufunc.at(out, ROWS, normal(3, 7, seed=2).astype(np.float64))
    return out


def added(index: Any, updates: np.ndarray) -> np.ndarray:
    out = DATA.astype(np.float64)
    np.add.at(out, index, updates.astype(np.float64))
    return out


UPDATED = DATA.copy()
UPDATED[ROWS[:2]] = normal(2, 7, seed=2)
GATHERS = [
    Case("gather", {"x": X}, X.take(PICKS, 1), {"indices": PICKS, "axis": 1}),
    Case(
        "gather",
        {"x": X},
        np.stack([X[i].take(PICKS[i], 0) for i in range(2)]),
        {"indices": PICKS[:2], "axis": 1, "batch_dims": 1},
    ),
    Case(
        "gather_along_axis",
        {"x": X, "indices": ALONG},
        np.take_along_axis(X, ALONG, 1),
        {"axis": 1},
    ),
    Case("gather_nd", {"x": X, "indices": POINTS}, X[POINTS[:, 0], POINTS[:, 1]]),
    *[
        Case(
            "scatter",
            {"data": DATA, "updates": normal(3, 7, seed=2)},
            scattered(mode),
            {"indices": ROWS, "axis": 0, "mode": mode},
        )
        for mode in ("add", "sub", "mul", "div", "max", "min")
    ],
    Case(
        "scatter",
        {"data": DATA, "updates": normal(2, 7, seed=2)},
        UPDATED,
        {"indices": ROWS[:2], "axis": 0, "mode": "update"},
    ),
    Case(
        "scatter_along_axis",
        {"data": DATA, "indices": SPREAD, "updates": normal(2, 7, seed=2)},
        added((SPREAD, np.arange(7)[None]), normal(2, 7, seed=2)),
        {"axis": 0, "mode": "add"},
    ),
    Case(
        "scatter_nd",
        {"data": DATA, "updates": normal(3, seed=2)},
        added((ROWS, ROWS), normal(3, seed=2)),
        {"indices": np.stack([ROWS, ROWS], 1), "mode": "add"},
    ),
]


CASES = SHAPES + SLICES + GENERATORS + GATHERS


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operation(case: Case) -> None:
    check(case)


def test_states() -> None:
    kind = "tensor<fp16, [2, 4]>"
    text = (
        "program(1.3)\n[buildInfo = dict<string, string>({})]\n{\n"
        f"func main<ios18>(state<{kind}> s, {kind} x) {{\n"
        f'{kind} old = read_state(input=s)[name=string("old")];\n'
        f'{kind} sum = add(x=old, y=x)[name=string("sum")];\n'
        f'{kind} new = coreml_update_state(state=s, value=sum)[name=string("n")];\n'
        f'{kind} y = mul(x=new, y=old)[name=string("y")];\n'
        f'{kind} z = read_state(input=s)[name=string("z")];\n'
        "} -> (y, z);\n}"
    )
    s, x = normal(2, 4), normal(2, 4, seed=1)
    got = emulated.run(text, inputs={"s": s, "x": x})
    np.testing.assert_array_equal(got["s"], s + x)
    np.testing.assert_array_equal(got["z"], s + x)
    np.testing.assert_array_equal(got["y"], (s + x) * s)


def test_write_state_has_no_result() -> None:
    kind = "tensor<fp16, [2, 32]>"
    text = (
        "program(1.3) {\n"
        f"func main<ios18>(state<{kind}> s, {kind} x) {{\n"
        f'{kind} old = read_state(input=s)[name=string("old")];\n'
        f'{kind} sum = add(x=old, y=x)[name=string("sum")];\n'
        'write_state(input=s, data=sum)[name=string("w")];\n'
        f'{kind} z = read_state(input=s)[name=string("z")];\n'
        "} -> (old, z);\n}"
    )
    s, x = normal(2, 32), normal(2, 32, seed=1)
    got = emulated.run(text, inputs={"s": s, "x": x})
    np.testing.assert_array_equal(got["old"], s)
    np.testing.assert_array_equal(got["z"], s + x)
    np.testing.assert_array_equal(got["s"], s + x)
    ids = {finding.rule for finding in mil.check(text, "h16g")}
    assert not ids & {"unknown-op", "shape-mismatch", "missing-argument"}


def buffer(shape: str, strides: str, factors: str) -> str:
    return (
        f"tensor_buffer<fp16, shape={shape}, strides={strides}, "
        f"interleave_factors={factors}>"
    )


@pytest.mark.parametrize(
    ("strides", "factors"),
    [("[256, 256, 64, 1]", "[1, 1, 1, 1]"), ("[256, 256, 128, 2]", "[1, 1, 2, 1]")],
)
def test_buffers(strides: str, factors: str) -> None:
    shape = "[1, 1, 4, 33]"
    inside = f"tensor<fp16, {shape}>"
    text = (
        "program(1.3) {\n"
        f"func main<ios18>({buffer(shape, strides, factors)} x) {{\n"
        f"{inside} xt = tensor_buffer_to_tensor<ios17>(input = x);\n"
        f"{inside} yt = mul(x = xt, y = xt);\n"
        f"{buffer(shape, strides, factors)} y = tensor_to_tensor_buffer<ios17>("
        f"input = yt, interleave_factors = tensor<uint8, [4]>({factors}), "
        f"strides = tensor<int64, [4]>({strides}));\n"
        "} -> (y);\n}"
    )
    program = mil.parse(text)
    assert mil.parse(program.text()) == program
    assert "tensor_buffer_to_tensor<ios17>(input = x)" in program.text()
    (value,) = program.functions[0].inputs
    assert list(value.strides or ()) == json.loads(strides)
    assert list(value.interleave_factors or ()) == json.loads(factors)
    x = normal(1, 1, 4, 33)
    got = emulated.run(text, inputs={"x": x})
    np.testing.assert_array_equal(got["y"], x * x)
    ids = {finding.rule for finding in mil.check(program, "h16g")}
    assert not ids & {"unknown-op", "unknown-argument", "newer-op", "row-stride"}
    narrow = mil.check(text.replace("[256, 256, 64, 1]", "[160, 160, 40, 1]"))
    assert ("row-stride" in {finding.rule for finding in narrow}) == (" 64" in strides)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("strides=[64, 1], ", "", "needs shape, strides and interleave_factors"),
        ("[64, 1]", "[0, 1]", "must be positive"),
        ("[64, 1]", "[?, 1]", "must be positive"),
        ("[64, 1]", f"[{2**58}, 1]", "larger than any surface"),
        ("strides=", "stride=", "has shape, strides and interleave_factors only"),
        ("tensor_buffer_to_tensor(input", "relu(x", "give it tensor_buffer_to_tensor"),
    ],
)
def test_buffers_that_are_refused(before: str, after: str, message: str) -> None:
    text = (
        f"program(1.3) {{ func main<ios18>({buffer('[3, 33]', '[64, 1]', '[1, 1]')} x)"
        "{ tensor<fp16, [3, 33]> y = tensor_buffer_to_tensor(input = x); } -> (y); }"
    )
    x = normal(3, 33)
    np.testing.assert_array_equal(emulated.run(text, inputs={"x": x})["y"], x)
    with pytest.raises((ValueError, emulated.EngineError), match=message):
        emulated.run(text.replace(before, after), inputs={"x": x})


@pytest.mark.parametrize("op", ["lstm", "affine"])
def test_operations_that_are_not_run_are_named(op: str) -> None:
    kind = "tensor<fp16, [1, 32]>"
    text = f"program(1.3) {{ func main<ios18>({kind} x) {{ {kind} y = {op}(x = x); }}"
    with pytest.raises(
        emulated.EngineError, match=f"does not run MIL's operation {op}"
    ):
        emulated.run(f"{text} -> (y); }}", inputs={"x": normal(1, 32)})
