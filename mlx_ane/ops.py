"""Matrix products on a device of ours, differentiable in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_ane import _ext
from mlx_ane._device import resolve


def linear(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    device: str | None = None,
    stream: Any = None,
) -> mx.array:
    """``y = x @ weight.T + bias``, as :class:`mlx.nn.Linear` computes it.

    The forward product runs on ``device``. Gradients are fp32 GEMMs of the
    arrays given here, on the CPU's BLAS; only those asked for are computed.

    Args:
        x (array): Shape (..., K); float32, float16 or bfloat16.
        weight (array): Shape (N, K), any strides.
        bias (array, optional): Shape (N,).
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None is
            :func:`mlx_ane.default_device`.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: Shape (..., N), in the dtype that MLX's promotion gives.

    Raises:
        ValueError: If shapes, dtypes, device or stream do not fit.
        RuntimeError: If this machine lacks the device.

    Example:
        >>> y = ane.linear(mx.ones((2, 3)), mx.ones((4, 3)), device="emulated")
        >>> y.shape
        (2, 4)
    """
    try:
        return _ext.linear(
            x, weight, bias, device=resolve(device, "linear"), stream=stream
        )
    except TypeError as error:
        raise bad_argument("linear", stream, x=x, weight=weight, bias=bias) from error


def matmul(
    a: mx.array, b: mx.array, *, device: str | None = None, stream: Any = None
) -> mx.array:
    """``a @ b``, batched and broadcast as :func:`mlx.core.matmul` does it.

    Args:
        a (array): Shape (..., M, K); float32, float16 or bfloat16.
        b (array): Shape (..., K, N).
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None is
            :func:`mlx_ane.default_device`.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: Shape (..., M, N).

    Raises:
        ValueError: If shapes, dtypes, device or stream do not fit.
        RuntimeError: If this machine lacks the device.

    Example:
        >>> ane.matmul(mx.ones((5, 2, 3)), mx.ones((3, 4)), device="cpu").shape
        (5, 2, 4)
    """
    try:
        return _ext.matmul(a, b, device=resolve(device, "matmul"), stream=stream)
    except TypeError as error:
        raise bad_argument("matmul", stream, a=a, b=b) from error


def bad_argument(where: str, stream: object, **arrays: object) -> ValueError:
    """The sentence behind a failed overload match: the first wrong argument."""
    for name, value in arrays.items():
        optional = name in ("bias", "mask", "sinks")
        if not isinstance(value, mx.array) and not (optional and value is None):
            return ValueError(
                f"[mlx_ane.{where}] {name} is {type(value).__name__}, need mx.array; "
                f"pass mx.array({name})."
            )
    return ValueError(
        f"[mlx_ane.{where}] stream is {stream!r}, need an MLX CPU stream or None; "
        f"pass mx.cpu, and our devices as device=."
    )
