"""Operations that move, window or pack values, against plain NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_emulated_ops import Case, check, integers, name_of, normal

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


def windows(
    x: np.ndarray,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pad: list[tuple[int, int]],
    fill: float,
) -> np.ndarray:
    """Windows of x (N, C, *spatial) as (N, C, *out, *kernel)."""
    x = np.pad(x.astype(float), [(0, 0), (0, 0), *pad], constant_values=fill)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, x.ndim))
    views = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    outer = tuple(slice(None, None, s) for s in stride)
    inner = tuple(slice(None, None, d) for d in dilation)
    return views[(slice(None), slice(None), *outer, *inner)]


def convolved(
    x: np.ndarray, w: np.ndarray, stride: Any, dilation: Any, pad: Any, groups: int
) -> np.ndarray:
    n = x.ndim - 2
    v = windows(x, w.shape[2:], stride, dilation, pad, 0.0)
    out = []
    for g in range(groups):
        channels = slice(g * w.shape[1], (g + 1) * w.shape[1])
        filters = slice(g * w.shape[0] // groups, (g + 1) * w.shape[0] // groups)
        axes = [1, *range(2 + n, 2 + 2 * n)]
        out.append(
            np.tensordot(
                v[:, channels], w[filters].astype(float), (axes, list(range(1, n + 2)))
            )
        )
    return np.moveaxis(np.concatenate(out, -1), -1, 1)


def conv(
    x: np.ndarray,
    w: np.ndarray,
    stride: Any,
    dilation: Any,
    pad: Any,
    pad_type: str,
    groups: int = 1,
    bias: np.ndarray | None = None,
) -> Case:
    want = convolved(x, w, stride, dilation, pad, groups)
    arguments = {
        "weight": w,
        "strides": list(stride),
        "dilations": list(dilation),
        "pad_type": pad_type,
        "pad": [v for pair in pad for v in pair],
        "groups": groups,
    }
    if bias is not None:
        arguments["bias"] = bias
        want = want + bias.reshape(-1, *[1] * (x.ndim - 2)).astype(float)
    return Case("conv", {"x": x}, want, arguments)


def transposed(x: np.ndarray, w: np.ndarray, stride: Any, pad: Any) -> np.ndarray:
    """conv_transpose of x (N, I, H, W) by w (I, O, h, w)."""
    n, _, h, wide = x.shape
    sizes = [(h - 1) * stride[0] + w.shape[2], (wide - 1) * stride[1] + w.shape[3]]
    out = np.zeros((n, w.shape[1], *sizes))
    for i, j in itertools.product(range(h), range(wide)):
        piece = np.tensordot(x[:, :, i, j].astype(float), w.astype(float), (1, 0))
        top, left = i * stride[0], j * stride[1]
        out[:, :, top : top + w.shape[2], left : left + w.shape[3]] += piece
    (a, b), (c, d) = pad
    return out[:, :, a : sizes[0] - b, c : sizes[1] - d]


NONE2 = [(0, 0), (0, 0)]
W33 = normal(5, 8, 3, 3, scale=0.2, seed=1)
CONVOLUTIONS = [
    conv(X, normal(5, 8, 1, 1, seed=1), (1, 1), (1, 1), NONE2, "valid"),
    conv(X, W33, (1, 1), (1, 1), [(1, 1), (1, 1)], "same"),
    conv(X, W33, (2, 2), (1, 1), [(0, 1), (0, 1)], "same"),
    conv(X, W33, (2, 2), (1, 1), [(1, 0), (1, 0)], "same_lower"),
    conv(X, W33, (1, 2), (1, 2), [(2, 0), (1, 3)], "custom", 1, normal(5)),
    conv(X, normal(4, 2, 3, 3, scale=0.3), (1, 1), (1, 1), NONE2, "valid", 4),
    conv(X[:, :, 0], normal(5, 8, 3, scale=0.3), (1,), (2,), [(0, 0)], "valid"),
    conv(
        normal(1, 2, 4, 5, 6),
        normal(3, 2, 2, 3, 2, scale=0.3),
        (1, 1, 2),
        (1, 1, 1),
        [(1, 0), (0, 0), (0, 1)],
        "custom",
    ),
    Case(
        "conv_transpose",
        {"x": X},
        transposed(X, (w := normal(8, 5, 3, 2, scale=0.3)), (2, 3), [(1, 0), (0, 1)])
        + normal(5)[:, None, None].astype(float),
        {
            "weight": w,
            "bias": normal(5),
            "strides": [2, 3],
            "pad_type": "custom",
            "pad": [1, 0, 0, 1],
        },
    ),
    Case(
        "conv_transpose",
        {"x": X},
        np.concatenate(
            [
                transposed(X[:, :4], w[:4], (1, 1), NONE2),
                transposed(X[:, 4:], w[4:], (1, 1), NONE2),
            ],
            1,
        ),
        {"weight": w, "groups": 2},
    ),
]


def pool(op: str, kernel: Any, stride: Any, pad: Any, **arguments: Any) -> Case:
    fill = -np.inf if op == "max_pool" else 0.0
    v = windows(X, kernel, stride, (1, 1), pad, fill)
    if op == "max_pool":
        want = v.max((-2, -1))
    elif op == "l2_pool":
        want = np.sqrt((v**2).sum((-2, -1)))
    else:
        counts = windows(np.ones_like(X), kernel, stride, (1, 1), pad, 0.0).sum(
            (-2, -1)
        )
        excluded = arguments.get("exclude_padding_from_average", False)
        want = v.sum((-2, -1)) / (counts if excluded else np.prod(kernel))
    arguments |= {
        "kernel_sizes": list(kernel),
        "strides": list(stride),
        "pad_type": "custom",
        "pad": [v for pair in pad for v in pair],
    }
    return Case(op, {"x": X}, want, arguments)


PADDED = [(1, 0), (1, 1)]
POOLS = [
    pool("max_pool", (2, 3), (2, 2), PADDED),
    pool("avg_pool", (2, 3), (2, 2), PADDED),
    pool("avg_pool", (2, 3), (1, 2), PADDED, exclude_padding_from_average=True),
    pool("l2_pool", (2, 3), (1, 1), NONE2),
    Case(
        "max_pool",
        {"x": X[:, :, :3, :5].copy()},
        np.stack(
            [
                np.stack(
                    [
                        X[:, :, a:b, c:d].max((2, 3))
                        for c, d in ((0, 2), (2, 4), (4, 5))
                    ],
                    -1,
                )
                for a, b in ((0, 2), (2, 3))
            ],
            -2,
        ),
        {
            "kernel_sizes": [2, 2],
            "strides": [2, 2],
            "pad_type": "valid",
            "ceil_mode": True,
        },
    ),
]


def interpolated(x: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    for axis, grid in ((2, rows), (3, cols)):
        size = x.shape[axis]
        grid = np.clip(grid, 0, size - 1)
        low = np.floor(grid).astype(int)
        high = np.minimum(low + 1, size - 1)
        t = (grid - low).reshape([-1 if d == axis else 1 for d in range(4)])
        x = x.take(low, axis) * (1 - t) + x.take(high, axis) * t
    return x


def grid(mode: str, size: int, n: int) -> np.ndarray:
    i = np.arange(n)
    return {
        "DEFAULT": i * (size - size / n) / (n - 1),
        "ALIGN_CORNERS": i * (size - 1) / (n - 1),
        "STRICT_ALIGN_CORNERS": i * (size - 1) / (n - 1),
        "UNALIGN_CORNERS": (i + 0.5) * size / n - 0.5,
        "OFFSET_CORNERS": (i + 0.5) * max(1, size - 1) / n,
    }[mode]


F = X.astype(np.float64)
RESIZES = [
    *[
        Case(
            "resize_bilinear",
            {"x": X},
            interpolated(F, grid(mode, 4, 7), grid(mode, 6, 9)),
            {"target_size_height": 7, "target_size_width": 9, "sampling_mode": mode},
        )
        for mode in (
            "DEFAULT",
            "ALIGN_CORNERS",
            "STRICT_ALIGN_CORNERS",
            "UNALIGN_CORNERS",
            "OFFSET_CORNERS",
        )
    ],
    moved(
        "resize_nearest_neighbor",
        X[:, :, np.arange(7) * 4 // 7][..., np.arange(3) * 6 // 3],
        target_size_height=7,
        target_size_width=3,
    ),
    moved(
        "upsample_nearest_neighbor",
        X.repeat(2, 2).repeat(3, 3),
        scale_factor_height=2,
        scale_factor_width=3,
    ),
    Case(
        "upsample_bilinear",
        {"x": X},
        interpolated(F, grid("ALIGN_CORNERS", 4, 8), grid("ALIGN_CORNERS", 6, 18)),
        {"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": True},
    ),
    Case(
        "upsample_bilinear",
        {"x": X},
        interpolated(F, grid("UNALIGN_CORNERS", 4, 8), grid("UNALIGN_CORNERS", 6, 18)),
        {"scale_factor_height": 2, "scale_factor_width": 3, "align_corners": False},
    ),
]

CODES = integers(-128, 128, 6, 16, dtype=np.int8)
SCALES = np.abs(normal(6, seed=2)) / np.float16(64) + np.float16(0.01)
ZEROS = integers(-5, 5, 6, dtype=np.int8)
CENTRED = (CODES.astype(float) - ZEROS[:, None].astype(float)) * SCALES[:, None]
LUT = normal(16, seed=3)
NIBBLES = integers(0, 16, 6, 16, dtype=np.uint8)
PACKED = (NIBBLES.reshape(-1, 2)[:, 0] | NIBBLES.reshape(-1, 2)[:, 1] << 4).astype(
    np.uint8
)
GROUPED = normal(2, 1, 16, 1, seed=4)
VECTORS = normal(1, 1, 4, 2, seed=5)
VECTOR_CODES = integers(0, 4, 6, 5, dtype=np.uint8)
BLOCK_SCALES = np.abs(normal(6, 4, seed=5))
SPARSE = integers(0, 2, 24, dtype=np.uint8)
NONZERO = normal(int(SPARSE.sum()), seed=6)
DENSE = np.zeros(24, np.float16)
DENSE[SPARSE == 1] = NONZERO
QUANTISATIONS = [
    Case(
        "quantize",
        {"input": normal(6, 16)},
        np.clip(
            np.round(
                normal(6, 16).astype(np.float32) / SCALES[:, None].astype(np.float32)
            )
            + ZEROS[:, None],
            -128,
            127,
        ).astype(np.int8),
        {"scale": SCALES, "zero_point": ZEROS, "output_dtype": "int8", "axis": 0},
    ),
    Case(
        "dequantize",
        {"input": CODES},
        CENTRED,
        {"scale": SCALES, "zero_point": ZEROS, "axis": 0},
    ),
    Case("dequantize", {"input": CODES}, CODES * 0.25, {"scale": np.float16(0.25)}),
    Case(
        "constexpr_affine_dequantize",
        {},
        CENTRED,
        {"quantized_data": CODES, "scale": SCALES, "zero_point": ZEROS, "axis": 0},
        {},
    ),
    Case(
        "constexpr_blockwise_shift_scale",
        {},
        CODES * BLOCK_SCALES.repeat(4, 1).astype(float),
        {"data": CODES, "scale": BLOCK_SCALES},
        {},
    ),
    Case(
        "constexpr_blockwise_shift_scale",
        {},
        CENTRED,
        {"data": CODES, "scale": SCALES[:, None], "offset": ZEROS[:, None]},
        {},
    ),
    Case(
        "constexpr_lut_to_dense",
        {},
        LUT[NIBBLES],
        {"indices": PACKED, "lut": LUT, "shape": np.array([6, 16], np.uint32)},
        {},
    ),
    Case(
        "constexpr_lut_to_dense",
        {},
        np.concatenate([GROUPED[0, 0, NIBBLES[:3], 0], GROUPED[1, 0, NIBBLES[3:], 0]]),
        {"indices": NIBBLES, "lut": GROUPED},
        {},
    ),
    Case(
        "constexpr_lut_to_dense",
        {},
        np.moveaxis(VECTORS[0, 0, VECTOR_CODES], 2, 1).reshape(12, 5),
        {"indices": VECTOR_CODES, "lut": VECTORS, "vector_axis": 0},
        {},
    ),
    Case(
        "constexpr_sparse_to_dense",
        {},
        DENSE.reshape(4, 6),
        {
            "nonzero_data": NONZERO,
            "mask": np.packbits(SPARSE, bitorder="little"),
            "shape": np.array([4, 6], np.uint32),
        },
        {},
    ),
    Case(
        "constexpr_sparse_to_dense",
        {},
        DENSE.reshape(4, 6),
        {"nonzero_data": NONZERO, "mask": SPARSE.reshape(4, 6)},
        {},
    ),
]

CASES = (
    SHAPES
    + SLICES
    + GENERATORS
    + GATHERS
    + CONVOLUTIONS
    + POOLS
    + RESIZES
    + QUANTISATIONS
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operation(case: Case) -> None:
    check(case)
