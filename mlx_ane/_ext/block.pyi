"""Programs of whole functions."""

from collections.abc import Sequence

import mlx.core

import mlx_ane._ext.mil


class Program:
    """A MIL program with its ports; see mlx_ane.block."""

    @property
    def id(self) -> int: ...

def place(name: str, reason: str) -> None:
    """Counts a call that the function itself serves."""

def weight_gradient(left: mlx.core.array, right: mlx.core.array, name: str, dtype: mlx.core.Dtype) -> mlx.core.array:
    """left (M, K) @ right (K, N) on the BLAS, on this thread's CPU stream."""

def admits(program: Program, device: str) -> bool:
    """Whether the device has the program, or room for it and its gradient."""

def stream(device: str) -> mlx.core.Stream:
    """The CPU stream that calls of a device run on."""

def min_rows() -> int:
    """Calls of fewer rows are placed on the BLAS."""

def program(program: mlx_ane._ext.mil.Program, inputs: Sequence[tuple[str, Sequence[int], Sequence[tuple[int, int, bool]], object]], results: Sequence[tuple[str, Sequence[int], int, bool]], cotangents: int) -> Program:
    """
    inputs: (name, shape, parts (input, row, transposed), table of fp16 bits or None); results: (name, shape, columns, scaled).
    """

def call(program: Program, inputs: Sequence[mlx.core.array], outputs: Sequence[tuple[Sequence[int], mlx.core.Dtype, int]], frozen: Sequence[bool], quantized: Sequence[tuple[int, int, int, str]], transforms: object, *, device: str, name: str = '', stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> list[mlx.core.array]:
    """
    A node of the program's results; outputs: (shape, dtype, residual input or -1); quantized: (input, group size, bits, mode), whose scales and biases follow the inputs; transforms has methods vjp, jvp and vmap.
    """
