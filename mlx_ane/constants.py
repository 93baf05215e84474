"""Weights as constants of a Core ML model: fp16, int8, int4, or as MLX quantised them.

Each way is a small function from an array to a `Constant`: the MIL operation that
gives the weight, its operands, and the values that come out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_ane.mil._dtypes import STORAGE
from mlx_ane.mil.spec import WEIGHTS
from mlx_ane.mil.weights import Writer

__all__ = [
    "WAYS",
    "Constant",
    "Quantised",
    "Store",
    "dense",
    "encode",
    "encode_quantised",
]

Array = npt.NDArray[Any]

#: Below, a weight stays fp16: what coremltools leaves alone too.
SMALL = 2048
#: Elements that share a scale in int4.
BLOCK = 32
#: Version of the specification (macOS 15) that has a scale for each block.
BLOCKWISE = 9


@dataclass(frozen=True)
class Constant:
    """``op(**operands)``: a weight and how it is stored."""

    op: str
    #: MIL type and elements of each operand, by name.
    operands: dict[str, tuple[str, Array]]
    #: The weight's values, fp16.
    values: Array


@dataclass(frozen=True)
class Quantised:
    """The parts of a weight that MLX quantised with scales and biases."""

    weight: mx.array  # (N, K * bits / 32)
    scales: mx.array  # (N, K / group_size)
    biases: mx.array  # (N, K / group_size)
    group_size: int
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.scales.shape[0], self.scales.shape[1] * self.group_size)

    def dense(self) -> mx.array:
        """The weight (N, K) as MLX computes with it."""
        return self._decode(self.scales, self.biases)

    def codes(self) -> Array:
        """The stored integers (N, K)."""
        one = mx.ones(self.scales.shape, mx.float32)
        codes = self._decode(one, mx.zeros_like(one))
        return np.array(codes).astype(np.uint8)

    def _decode(self, scales: mx.array, biases: mx.array) -> mx.array:
        return mx.dequantize(
            self.weight, scales, biases, group_size=self.group_size, bits=self.bits
        )


def dense(weight: Array | Quantised) -> Array:
    """The values of a weight, as NumPy has them."""
    if isinstance(weight, Quantised):
        return np.array(weight.dense().astype(mx.float32))
    return weight


class Store:
    """The weight file of a model; equal arrays share a chunk."""

    def __init__(self) -> None:
        self.writer = Writer()
        self._offsets: dict[tuple[str, bytes], int] = {}

    @property
    def used(self) -> bool:
        """Whether it has chunks."""
        return bool(self._offsets)

    def literal(self, dtype: str, array: Array) -> str:
        """MIL text of a constant, in the file if it has ten elements or more."""
        kind = f"tensor<{dtype}, [{', '.join(map(str, array.shape))}]>"
        elements = np.ascontiguousarray(array, STORAGE[dtype])
        if array.size < 10 or dtype == "uint32":
            words = [
                float(v).hex() if dtype == "fp16" else str(v) for v in elements.flat
            ]
            text = f"[{', '.join(words)}]" if array.ndim else words[0]
            return f"{kind if array.ndim else dtype}({text})"
        key = (dtype, elements.tobytes())
        if key not in self._offsets:
            self._offsets[key] = self.writer.add(elements, dtype)
        path = f'path = string("{WEIGHTS}"), offset = uint64({self._offsets[key]})'
        return f"{kind}(BLOBFILE({path}))"


def _half(weight: Array, axis: int) -> Constant:
    values = weight.astype(np.float16)
    return Constant("const", {"val": ("fp16", values)}, values)


def _int8(weight: Array, axis: int) -> Constant:
    """A scale for each index of `axis`."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scales(np.abs(weight).max(others, keepdims=True) / 127)
    codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    operands = {
        "quantized_data": ("int8", codes),
        "zero_point": ("int8", np.zeros((), np.int8)),
        "scale": ("fp16", scale.reshape(-1)),
        "axis": ("int32", np.array(axis, np.int32)),
    }
    values = codes.astype(np.float32) * scale
    return Constant("constexpr_affine_dequantize", operands, values.astype(np.float16))


def _int4_blocks(weight: Array, axis: int) -> Constant:
    """A scale for each `BLOCK` elements of the axis behind `axis`."""
    inner = axis + 1
    size = weight.shape[inner]
    block = BLOCK if size % BLOCK == 0 else size
    apart = list(weight.shape)
    apart[inner : inner + 1] = [size // block, block]
    grouped = weight.reshape(apart)
    scale = _scales(np.abs(grouped).max(inner + 1, keepdims=True) / 7)
    codes = np.clip(np.rint(grouped / scale), -7, 7).astype(np.int8)
    values = (codes.astype(np.float32) * scale).reshape(weight.shape)
    operands = {
        "data": ("int4", codes.reshape(weight.shape)),
        "scale": ("fp16", scale.squeeze(inner + 1)),
    }
    return Constant(
        "constexpr_blockwise_shift_scale", operands, values.astype(np.float16)
    )


def _int4_table(weight: Array, axis: int) -> Constant:
    """A table of 16 values for the whole weight: Lloyd's algorithm from quantiles."""
    flat = np.sort(weight, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(flat)])
    table = np.quantile(flat, (np.arange(16) + 0.5) / 16)
    for _ in range(30):
        edges = np.searchsorted(flat, (table[1:] + table[:-1]) / 2)
        edges = np.concatenate([[0], edges, [flat.size]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        table = np.sort(np.where(counts > 0, means, table))
    table = table.astype(np.float16)
    middles = (table[1:].astype(np.float32) + table[:-1]) / 2
    codes = np.searchsorted(middles, weight.ravel()).astype(np.uint8)
    low, high = codes[::2], codes[1::2]
    packed = low | np.resize(np.append(high, 0), low.size).astype(np.uint8) << 4
    operands = {
        "indices": ("uint8", packed),
        "lut": ("fp16", table),
        "shape": ("uint32", np.array(weight.shape, np.uint32)),
    }
    return Constant(
        "constexpr_lut_to_dense", operands, table[codes].reshape(weight.shape)
    )


def _scales(scale: Array) -> Array:
    """As fp16 holds them, none of them zero."""
    return np.maximum(scale, 2.0**-24).astype(np.float16)


#: How weights may be stored, by name and whether the target has blocks.
WAYS: dict[str, tuple[Callable[[Array, int], Constant], ...]] = {
    "float16": (_half, _half),
    "int8": (_int8, _int8),
    "int4": (_int4_table, _int4_blocks),
}


def encode(weight: Array, axis: int, way: str, version: int) -> Constant:
    """A weight in one of `WAYS`.

    Args:
        weight (array): Its values; small ones and vectors stay fp16.
        axis (int): The axis whose indices have scales of their own: the rows of a
            matrix (N, K), the output channels of a kernel (O, I, h, w).
        way (str): A name of `WAYS`.
        version (int): Version of the specification.
    """
    matrix = sum(n > 1 for n in weight.shape) > 1
    narrow = way == "int4" and weight.shape[axis + 1] < BLOCK
    if weight.size < SMALL or not matrix or narrow:
        way = "float16"
    return WAYS[way][version >= BLOCKWISE](weight, axis)


def encode_quantised(parts: Quantised) -> Constant | None:
    """A weight (1, 1, N, K) as MLX quantised it; None if fp16 cannot hold it so."""
    expected = dense(parts)
    codes, scales = parts.codes(), np.array(parts.scales.astype(mx.float32))
    biases = np.array(parts.biases.astype(mx.float32))
    # w = scale * code + bias = scale * (code - offset)
    offsets = np.divide(-biases, scales, out=np.zeros_like(scales), where=scales != 0)
    dtype = "uint4" if parts.bits <= 4 else "uint8"
    whole = np.rint(offsets)
    tries: list[tuple[str, Array]] = [("fp16", offsets.astype(np.float16))]
    if whole.min() >= 0 and whole.max() < 2 ** (4 if parts.bits <= 4 else 8):
        tries.insert(0, (dtype, whole.astype(np.uint8)))
    scale = scales.astype(np.float16)
    for kind, offset in tries:
        wide = [np.repeat(a, parts.group_size, 1) for a in (scale, offset)]
        values = (codes - wide[1].astype(np.float32)) * wide[0]
        if np.abs(values - expected).max() <= 1e-3 * np.abs(expected).max():
            operands = {
                "data": (dtype, codes[None, None]),
                "scale": ("fp16", scale[None, None]),
                "offset": (kind, offset[None, None]),
            }
            return Constant(
                "constexpr_blockwise_shift_scale",
                operands,
                values.astype(np.float16)[None, None],
            )
    return None
