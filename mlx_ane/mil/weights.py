"""Weight files: the arrays behind a program's BLOBFILE constants.

>>> import numpy as np
>>> from mlx_ane.mil import weights
>>> writer = weights.Writer()
>>> writer.add(np.arange(4, dtype=np.float16))
64
>>> writer.add(np.array([1, 2, 3], dtype=np.uint8), "uint4")
192
>>> file = writer.getvalue()
>>> [(chunk.offset, chunk.dtype) for chunk in weights.chunks(file)]
[(64, 'fp16'), (192, 'uint4')]
>>> weights.read(file, 192, "uint4", (3,)).tolist()
[1, 2, 3]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_ane import _ext
from mlx_ane.mil._dtypes import IN_FILES, STORAGE, from_bytes

__all__ = ["Chunk", "Writer", "chunks", "load", "read"]


@dataclass(frozen=True)
class Chunk:
    """One array of a weight file."""

    #: MIL's name of the element type, or None for a type code without one.
    dtype: str | None
    #: What a program's BLOBFILE names: where the chunk's header stands.
    offset: int
    #: Where the elements stand, and how many bytes they take.
    data_offset: int
    nbytes: int
    #: Number of elements; their shape is in the program, not in the file.
    size: int


class Writer:
    """Collects arrays for one weight file, chunks aligned to 64 bytes."""

    def __init__(self) -> None:
        #: The writer of the extension module.
        self.handle = _ext.mil.WeightWriter()

    def add(self, array: npt.ArrayLike, dtype: str | None = None) -> int:
        """Append an array.

        Args:
            array (array): Elements of any shape, written in row-major order.
            dtype (str, optional): MIL type: fp16, fp32, bf16 (given as uint16 bits),
                int4, int8, int16, int32, uint1, uint2, uint3, uint4, uint6, uint8,
                uint16 or uint32; the array's own type if None.

        Returns:
            int: The offset for BLOBFILE.

        Raises:
            ValueError: A type that a weight file cannot hold, or elements that the
                type cannot.
        """
        values = np.asarray(array)
        name = _name_of(values.dtype) if dtype is None else dtype
        if name not in IN_FILES:
            raise ValueError(
                f"[mlx_ane.mil.weights] dtype is {name!r}, need one of "
                f"{', '.join(IN_FILES)}."
            )
        stored = values.astype(STORAGE[name])
        exact = values.dtype.kind in "iub" and np.array_equal(stored, values)
        if np.dtype(STORAGE[name]).kind in "iu" and not exact:
            raise ValueError(
                f"[mlx_ane.mil.weights] array is {values.dtype} with elements that "
                f"{name} does not hold; round and clip it first."
            )
        return int(self.handle.add(name, stored.tobytes()))

    def getvalue(self) -> bytes:
        """The file so far."""
        return bytes(self.handle.bytes())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file to `path`."""
        with open(path, "wb") as file:
            file.write(self.getvalue())


def chunks(file: bytes) -> list[Chunk]:
    """List the arrays of a weight file.

    Args:
        file (bytes): Its content.

    Returns:
        list[Chunk]: In the order of the file.

    Raises:
        ValueError: No weight file, or a damaged one.
    """
    return [
        Chunk(c.dtype, c.offset, c.data_offset, c.bytes, c.elements)
        for c in _ext.mil.chunks(bytes(file))
    ]


def read(
    file: bytes, offset: int, dtype: str, shape: Sequence[int]
) -> npt.NDArray[Any]:
    """Read one array.

    Args:
        file (bytes): Content of a weight file.
        offset (int): Offset of the chunk's header, as in BLOBFILE.
        dtype (str): MIL type, as the program declares it: it counts, not the code in
            the file, since some writers mark int8 as fp16.
        shape (Sequence[int]): Shape, as the program declares it.

    Returns:
        array: Elements in their NumPy type; int4 as int8, uint1 to uint6 as uint8,
        bf16 as uint16 bits.

    Raises:
        ValueError: No chunk at `offset`, or fewer elements than `shape` has.
    """
    sizes = [int(size) for size in shape]
    if any(size < 0 for size in sizes) or offset < 0:
        raise ValueError(
            f"[mlx_ane.mil.weights] offset is {offset} and shape {tuple(sizes)}, "
            "need numbers of at least 0."
        )
    data = _ext.mil.read_chunk(bytes(file), offset, dtype, sizes)
    return from_bytes(data, dtype).reshape(sizes)


def load(file: bytes) -> dict[int, npt.NDArray[Any]]:
    """Read every array flat, by the offset of its header.

    Raises:
        ValueError: A damaged file, or a chunk of unknown type.
    """
    arrays = {}
    for chunk in chunks(file):
        if chunk.dtype is None:
            raise ValueError(
                f"[mlx_ane.mil.weights] the chunk at {chunk.offset} has an unknown "
                "type; read it with the type that its program declares."
            )
        arrays[chunk.offset] = read(file, chunk.offset, chunk.dtype, (chunk.size,))
    return arrays


def _name_of(dtype: np.dtype[Any]) -> str:
    for name in ("fp16", "fp32", "int8", "int16", "int32", "uint8", "uint16", "uint32"):
        if np.dtype(STORAGE[name]) == dtype:
            return name
    raise ValueError(
        f"[mlx_ane.mil.weights] array is {dtype}, need float16, float32 or an integer "
        "of at most 32 bits; convert it, or give dtype."
    )
