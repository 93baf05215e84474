"""Weight files: round trips, and the same bytes and values as coremltools."""

from __future__ import annotations

import contextlib
import io
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_ane.mil import weights

#: MIL type -> bits, signed, and coremltools' name and NumPy type of it.
TYPES: dict[str, tuple[int, bool, str, Any]] = {
    "fp16": (16, False, "fp16", np.uint16),
    "fp32": (32, False, "float", np.float32),
    "int4": (4, True, "int4", np.int8),
    "int8": (8, True, "int8", np.int8),
    "int16": (16, True, "int16", np.int16),
    "int32": (32, True, "int32", np.int32),
    "uint1": (1, False, "uint1", np.uint8),
    "uint2": (2, False, "uint2", np.uint8),
    "uint3": (3, False, "uint3", np.uint8),
    "uint4": (4, False, "uint4", np.uint8),
    "uint6": (6, False, "uint6", np.uint8),
    "uint8": (8, False, "uint8", np.uint8),
    "uint16": (16, False, "uint16", np.uint16),
    "uint32": (32, False, "uint32", np.uint32),
}


def random_array(dtype: str, count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype.startswith("fp"):
        kind = np.float16 if dtype == "fp16" else np.float32
        return generator.standard_normal(count).astype(kind)
    width, signed, _, kind = TYPES[dtype]
    low = -(2 ** (width - 1)) if signed else 0
    return generator.integers(low, low + 2**width, count).astype(kind)


@pytest.fixture(scope="module")
def storage() -> Any:
    """coremltools' own reader and writer of weight files."""
    with contextlib.redirect_stderr(io.StringIO()):
        return pytest.importorskip("coremltools.libmilstoragepython")


@given(st.lists(st.tuples(st.sampled_from(sorted(TYPES)), st.integers(0, 70))))
def test_round_trip(chunks: list[tuple[str, int]]) -> None:
    writer = weights.Writer()
    arrays = [random_array(dtype, count, i) for i, (dtype, count) in enumerate(chunks)]
    offsets = [
        writer.add(array, dtype)
        for array, (dtype, _) in zip(arrays, chunks, strict=True)
    ]
    file = writer.getvalue()
    assert [c.offset for c in weights.chunks(file)] == offsets
    assert [c.size for c in weights.chunks(file)] == [count for _, count in chunks]
    for array, offset, (dtype, count) in zip(arrays, offsets, chunks, strict=True):
        assert offset % 64 == 0
        np.testing.assert_array_equal(
            weights.read(file, offset, dtype, (count,)), array
        )


@pytest.mark.parametrize("dtype", sorted(TYPES))
def test_coremltools_reads_our_files(
    dtype: str, storage: Any, tmp_path: pathlib.Path
) -> None:
    _, _, name, kind = TYPES[dtype]
    arrays = [random_array(dtype, count, count) for count in (5, 64, 1, 333)]
    writer = weights.Writer()
    offsets = [writer.add(array, dtype) for array in arrays]
    writer.save(tmp_path / "w.bin")
    reader = storage._BlobStorageReader(str(tmp_path / "w.bin"))
    for array, offset in zip(arrays, offsets, strict=True):
        theirs = getattr(reader, f"read_{name}_data")(offset)
        expected = array.view(np.uint16) if dtype == "fp16" else array
        np.testing.assert_array_equal(np.array(theirs, kind), expected)


@pytest.mark.parametrize("dtype", sorted(TYPES))
def test_we_read_coremltools_files(
    dtype: str, storage: Any, tmp_path: pathlib.Path
) -> None:
    _, _, name, _ = TYPES[dtype]
    arrays = [random_array(dtype, count, count) for count in (5, 64, 1, 333)]
    path = str(tmp_path / "w.bin")
    writer = storage._BlobStorageWriter(path)
    offsets = [
        getattr(writer, f"write_{name}_data")(
            array.view(np.uint16) if dtype == "fp16" else array
        )
        for array in arrays
    ]
    del writer
    file = pathlib.Path(path).read_bytes()
    assert [(c.offset, c.dtype, c.size) for c in weights.chunks(file)] == [
        (offset, dtype, array.size)
        for offset, array in zip(offsets, arrays, strict=True)
    ]
    for array, offset in zip(arrays, offsets, strict=True):
        read = weights.read(file, offset, dtype, array.shape)
        np.testing.assert_array_equal(read, array)


def test_the_bytes_are_those_of_coremltools(
    storage: Any, tmp_path: pathlib.Path
) -> None:
    ours = weights.Writer()
    theirs = storage._BlobStorageWriter(str(tmp_path / "w.bin"))
    for dtype, count in [("int4", 7), ("fp32", 3), ("uint3", 11), ("uint8", 64)]:
        array = random_array(dtype, count)
        ours.add(array, dtype)
        getattr(theirs, f"write_{TYPES[dtype][2]}_data")(array)
    del theirs
    written = (tmp_path / "w.bin").read_bytes()
    # Ours pads the last chunk to 64 bytes too.
    assert ours.getvalue()[: len(written)] == written
    assert not any(ours.getvalue()[len(written) :])


def test_type_follows_the_array_and_shapes_are_the_programs() -> None:
    writer = weights.Writer()
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    offset = writer.add(array.T)
    file = writer.getvalue()
    read = weights.read(file, offset, "fp16", (3, 2))
    np.testing.assert_array_equal(read, array.T)
    assert weights.load(file)[offset].tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("array", "dtype", "message"),
    [
        (np.zeros(2), None, "array is float64, need float16"),
        (np.zeros(2), "fp64", "dtype is 'fp64', need one of fp16"),
        (np.array([300]), "int8", "elements that int8 does not hold"),
        (np.array([0.5]), "int8", "elements that int8 does not hold"),
        (np.array([16]), "uint4", "element 0 is 16, but uint4 holds 0 to 15"),
        (np.array([-9]), "int4", "element 0 is -9"),
    ],
)
def test_writer_refuses(array: np.ndarray, dtype: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights.Writer().add(array, dtype)


def test_chunks_behind_a_gap() -> None:
    writer = weights.Writer()
    writer.add(np.arange(4, dtype=np.float16))
    writer.add(np.arange(3, dtype=np.uint8))
    file = writer.getvalue()
    moved = bytearray(file[:64] + bytes(192) + file[64:])
    for header, payload in [(256, 320), (384, 448)]:
        struct.pack_into("<Q", moved, header + 16, payload)
    assert [chunk.offset for chunk in weights.chunks(bytes(moved))] == [256, 384]
    assert weights.read(bytes(moved), 256, "fp16", (4,)).tolist() == [0, 1, 2, 3]
    assert weights.load(bytes(moved))[384].tolist() == [0, 1, 2]


def test_reader_refuses() -> None:
    writer = weights.Writer()
    writer.add(np.arange(4, dtype=np.float16))
    file = writer.getvalue()
    for offset, dtype, shape, message in [
        (128, "fp16", (4,), "no chunk at 128"),
        (64, "fp16", (5,), "has 8 bytes, but the constant needs 10"),
        (64, "fp17", (4,), "dtype is 'fp17'"),
        (64, "fp16", (2**62, 2**62), "too large"),
        (64, "fp16", (-1,), "need numbers of at least 0"),
        (-64, "fp16", (4,), "need numbers of at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            weights.read(file, offset, dtype, shape)
    with pytest.raises(ValueError, match="need a header of 64"):
        weights.chunks(b"")


@given(
    st.integers(0, 5),
    st.sampled_from([(0, "<I"), (64, "<I"), (68, "<I"), (72, "<Q"), (80, "<Q")]),
    st.integers(0, 2**64 - 1),
)
def test_damaged_headers_never_reach_outside(
    count: int, field: tuple[int, str], value: int
) -> None:
    writer = weights.Writer()
    writer.add(np.arange(count, dtype=np.uint8))
    file = bytearray(writer.getvalue())
    offset, kind = field
    struct.pack_into(kind, file, offset, value & (2 ** (8 * struct.calcsize(kind)) - 1))
    try:
        for chunk in weights.chunks(bytes(file)):
            assert chunk.data_offset + chunk.nbytes <= len(file) + 64
            weights.read(bytes(file), chunk.offset, "uint8", (chunk.nbytes,))
    except ValueError as error:
        assert str(error).startswith("[mlx_ane.mil.weights]")
