"""The compiled part of mlx_ane."""

from collections.abc import Sequence

import mlx.core

from mlx_ane._ext import (
    block as block,
    emulated as emulated,
    kernels as kernels,
    mil as mil,
    planning as planning
)


built_for_mlx: str = '0.32.4'

def accepts(x: mlx.core.array) -> bool:
    """True; TypeError where MLX's arrays are another build's."""

def linear(x: mlx.core.array, weight: mlx.core.array, bias: mlx.core.array | None = None, *, device: str = 'cpu', name: str = '', frozen: bool = False, precision: str = 'default', stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """x (..., K) @ weight (N, K).T + bias (N); differentiable."""

def matmul(a: mlx.core.array, b: mlx.core.array, *, device: str = 'cpu', name: str = '', stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """a (..., M, K) @ b (..., K, N) with mx.matmul's rules; differentiable."""

def quantized_linear(x: mlx.core.array, weight: mlx.core.array, scales: mlx.core.array, biases: mlx.core.array | None = None, bias: mlx.core.array | None = None, *, group_size: int, bits: int, mode: str = 'affine', device: str = 'cpu', name: str = '', frozen: bool = True, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """mx.quantized_matmul(x, ...) + bias on a device; differentiable."""

def attention(q: mlx.core.array, k: mlx.core.array, v: mlx.core.array, scale: float, mask: mlx.core.array | None = None, sinks: mlx.core.array | None = None, causal: bool = False, *, device: str = 'cpu', stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """softmax(scale q @ k.T + mask) @ v over (B, H, S, D); differentiable."""

def cross_entropy(logits: mlx.core.array, targets: mlx.core.array, label_smoothing: float = 0.0, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """Losses (...) of logits (..., V) and targets (...); differentiable."""

def swiglu(gate: mlx.core.array, up: mlx.core.array, *, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> mlx.core.array:
    """silu(gate) * up; differentiable."""

def adam(parameters: Sequence[mlx.core.array], gradients: Sequence[mlx.core.array], m: Sequence[mlx.core.array], v: Sequence[mlx.core.array], scalars: mlx.core.array, *, betas: tuple[float, float], eps: float, weight_decay: float, max_norm: float | None = None, stochastic: bool = False, stream: mlx.core.Stream | mlx.core.ThreadLocalStream | mlx.core.Device | mlx.core.DeviceType | None = None) -> tuple[list[mlx.core.array], list[mlx.core.array], list[mlx.core.array]]:
    """
    One AdamW step over lists of tensors; scalars is float32 [learning_rate, c1, c2, step]. Returns (parameters, m, v).
    """

def unavailable(name: str) -> str | None:
    """Why a device cannot be used here, or None."""

def disabled(name: str) -> str | None:
    """Why a device is disabled for this process, or None."""

def device_info(name: str) -> dict[str, str]:
    """Facts about a device, by name."""

def set_fallback(name: str) -> None:
    """What a failed device call does: "error", "warn" or "allow"."""

def restore_devices() -> None:
    """Gives disabled devices, and layers that pause, another chance."""

def set_min_rows(n: int) -> int:
    """Calls of fewer rows go to the BLAS; returns the previous value."""

def set_spot_check(every_n_calls: int) -> None:
    """Compare every n-th device call with the BLAS; 0 never."""

def set_layout(name: str) -> None:
    """Layout of the matmul programs."""

def clear_cache() -> None:
    """Drops staged weights, idle programs and memory kept for outputs."""

def set_cache_limit(bytes: int) -> int:
    """Most bytes of each of the three caches; returns the previous limit."""

def cache_bytes() -> int:
    """Bytes of staged weights."""

def program_bytes() -> int:
    """Bytes of the surfaces of loaded programs."""

def kept_output_bytes() -> int:
    """Bytes kept for outputs to come."""

def resident_programs() -> int:
    """Programs loaded now."""

def cache_directory() -> str:
    """The folder of verdicts, measurements and compiled programs."""

def warn_not_kept(what: str, where: str, why: str) -> None:
    """One line on stderr that something could not be kept there."""

def ane_routes() -> list[str]:
    """Routes to the engine that are built in, in the order of trial."""

def abandoned_calls() -> int:
    """Hung calls not yet returned."""

def synchronize() -> None:
    """Waits for this thread's CPU streams, the engine's own included."""

def counters() -> dict[str, int]:
    """Process-wide counts by name."""

def layer_counters() -> dict[str, dict[str, float]]:
    """Counts of each layer."""

def forget_layer(name: str) -> None:
    """Ends the record of a layer that is gone."""

def reset_counters() -> None:
    """Sets all counts to zero."""

def timeline_start() -> None:
    """Starts recording spans."""

def timeline_stop() -> str:
    """Stops recording; returns the events as JSON text."""

def blas_name() -> str:
    """Library and kernel of the BLAS."""

def blas_threads() -> int:
    """Threads of one GEMM."""

def set_blas_threads(n: int) -> None:
    """0 for the default."""
