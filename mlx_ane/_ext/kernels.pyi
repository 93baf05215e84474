"""Host kernels, for benchmarks."""

from typing import Annotated

import numpy
from numpy.typing import NDArray


def targets() -> list[str]:
    """Instruction sets that this CPU runs, best first."""

def target() -> str:
    """The instruction set in use."""

def fma_peak(seconds: float) -> float:
    """fp32 fused multiply-adds of one thread, in GFLOP/s."""

def usable_cores() -> int:
    """Cores that this process may keep busy."""

def cpu_quota(root: str = '/') -> float | None:
    """
    The control group's CPU quota in cores, or None; files are looked for below root.
    """

def memory_copy(dst: Annotated[NDArray, dict(device='cpu')], src: Annotated[NDArray, dict(device='cpu')], bytes: int) -> None:
    """memcpy of the first `bytes` bytes."""

def adam_implementation() -> str:
    """What computes Adam's steps: "loop" or "accelerate"."""

def set_adam_implementation(name: str) -> None:
    """Computes the steps from here on by this implementation."""

def has_accelerate() -> bool:
    """Whether "accelerate" calls Accelerate, not loops that stand in."""

def pack(x: Annotated[NDArray, dict(device='cpu')], out: Annotated[NDArray, dict(device='cpu')], *, transposed: bool = False) -> None:
    """float16 of x (rows, cols) in out, or in out.T; out is zero-padded."""

def pack_scaled(x: Annotated[NDArray, dict(device='cpu')], out: Annotated[NDArray, dict(device='cpu')], log2_norm: int, *, transposed: bool = False) -> list[int]:
    """
    pack, each row times the power of two that brings its norm to at most 2^log2_norm. Returns the exponents.
    """

def unpack(x: Annotated[NDArray, dict(device='cpu')], out: Annotated[NDArray, dict(device='cpu')], *, transposed: bool = False) -> None:
    """float32 of the float16 x, or x.T, in out."""

def adam(p: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], g: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], m: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], v: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], *, learning_rate: float = 0.0010000000474974513, weight_decay: float = 0.0, gradient_scale: float = 1.0, reference: bool = False, passes: bool = False) -> None:
    """
    One AdamW step in place on float32 arrays: fused, as plain loops, or in ten passes, whose gradient_scale must be 1.
    """

def adam_traffic(p: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], g: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], m: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], v: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')]) -> None:
    """The memory traffic of adam alone; leaves meaningless values."""

def sgemm(a: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], b: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], c: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], *, trans_a: bool = False, trans_b: bool = False, reference: bool = False) -> None:
    """
    c = op(a) @ op(b) on float32 arrays: the library's own call, or plain loops.
    """

def gemm(a: Annotated[NDArray, dict(device='cpu')], b: Annotated[NDArray, dict(device='cpu')], c: Annotated[NDArray, dict(device='cpu')]) -> None:
    """c = a @ b for any strides of float32, float16 or bfloat16 (as uint16)."""
