"""NumPy types of MIL's element types."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: How the extension stores one element. Sub-byte types take a byte each; bf16, which
#: NumPy does not have, is kept as its bits.
STORAGE: dict[str, npt.DTypeLike] = {
    "fp16": np.float16,
    "fp32": np.float32,
    "fp64": np.float64,
    "bf16": np.uint16,
    "int4": np.int8,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint1": np.uint8,
    "uint2": np.uint8,
    "uint3": np.uint8,
    "uint4": np.uint8,
    "uint6": np.uint8,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}

#: Element types that a weight file can hold, with their bits.
IN_FILES: dict[str, int] = {
    "fp16": 16,
    "fp32": 32,
    "bf16": 16,
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "uint1": 1,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
    "uint6": 6,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
}


def from_bytes(data: bytes, dtype: str) -> npt.NDArray[Any]:
    """A flat array of the elements in `data`."""
    return np.frombuffer(data, dtype=STORAGE[dtype])
