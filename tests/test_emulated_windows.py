"""Convolutions, pools, resizing and quantised constants, against plain NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_emulated_ops import Case, check, integers, name_of, normal
from test_emulated_tensors import moved

X = normal(2, 8, 4, 6)


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

CASES = CONVOLUTIONS + POOLS + RESIZES + QUANTISATIONS


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_operation(case: Case) -> None:
    check(case)
