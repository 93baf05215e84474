"""Matrix products on a device of ours, differentiable in MLX."""

from __future__ import annotations

import math
import re
from typing import Any

import mlx.core as mx

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import resolve
from mlx_ane._types import PRECISIONS, Device, Precision, checked_word


def linear(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    *,
    device: Device | None = None,
    precision: Precision | None = None,
    stream: Any = None,
) -> mx.array:
    """``y = x @ weight.T + bias``, as :class:`mlx.nn.Linear` computes it.

    The forward product runs on ``device``. Gradients are fp32 GEMMs of the
    arrays given here, on the CPU's BLAS; only those asked for are computed.

    Args:
        x (array): Shape (..., K); float32, float16, bfloat16, or integers or
            booleans, which take the type of the others.
        weight (array): Shape (N, K), any strides; likewise.
        bias (array, optional): Shape (N,).
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None is
            :func:`mlx_ane.default_device`.
        precision (str, optional): "default" or None; "high" for a two-term split of
            both operands; or "exact" for fp32 on the CPU's BLAS, whatever the device.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: Shape (..., N), in the dtype that MLX's promotion gives.

    Raises:
        ValueError: If shapes, dtypes, device, precision or stream do not fit.
        RuntimeError: If this machine lacks the device.

    Example:
        >>> y = ane.linear(mx.ones((2, 3)), mx.ones((4, 3)), device="emulated")
        >>> y.shape
        (2, 4)
    """
    on = resolve(device, "linear")
    if precision is not None:
        checked_word("linear", "precision", precision, PRECISIONS, " or None")
    if capturing():
        return plain_linear(x, weight, bias)
    try:
        return _ext.linear(
            x,
            weight,
            bias,
            device="cpu" if precision == "exact" else on,
            precision="high" if precision == "high" else "default",
            stream=stream,
        )
    except TypeError as error:
        raise bad_argument("linear", stream, x=x, weight=weight, bias=bias) from error


def matmul(
    a: mx.array, b: mx.array, *, device: Device | None = None, stream: Any = None
) -> mx.array:
    """``a @ b``, batched and broadcast as :func:`mlx.core.matmul` does it.

    Args:
        a (array): Shape (..., M, K); float32, float16, bfloat16, or integers or
            booleans, which take the type of the other.
        b (array): Shape (..., K, N); likewise.
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
    if capturing():
        return a @ b
    try:
        return _ext.matmul(a, b, device=resolve(device, "matmul"), stream=stream)
    except TypeError as error:
        raise bad_argument("matmul", stream, a=a, b=b) from error


def einsum(
    subscripts: str,
    a: mx.array,
    b: mx.array,
    *,
    device: Device | None = None,
    stream: Any = None,
) -> mx.array:
    """Two operands of :func:`mlx.core.einsum`, as one batched :func:`matmul`.

    Labels of both operands and the result are batched, those of both operands
    alone are contracted, and those of one operand alone are summed before.

    Args:
        subscripts (str): For example "bqhd,bkhd->bhqk". Without "->", the result
            has the labels that occur once, in alphabetical order.
        a (array): One axis a label; dtypes as :func:`matmul` has them.
        b (array): The same; axes of one label have one size.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None is
            :func:`mlx_ane.default_device`.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: One axis a label of the result.

    Raises:
        ValueError: If subscripts, shapes, dtypes, device or stream do not fit.
        NotImplementedError: For "..." and for a label twice in one operand.
        RuntimeError: If this machine lacks the device.

    Example:
        >>> x, y = mx.ones((2, 8, 4, 16)), mx.ones((2, 9, 4, 16))
        >>> ane.einsum("bqhd,bkhd->bhqk", x, y, device="emulated").shape
        (2, 4, 8, 9)
    """
    if not (isinstance(a, mx.array) and isinstance(b, mx.array)):
        raise bad_argument("einsum", stream, a=a, b=b)
    left, right, out = _labels(subscripts)
    sizes = _sizes({"a": left, "b": right}, {"a": a, "b": b})
    on = mx.cpu if stream is None else stream  # where matmul runs too
    batch = [i for i in out if i in left and i in right]
    rows = [i for i in out if i not in right]
    columns = [i for i in out if i not in left]
    inner = [i for i in left if i in right and i not in out]

    def grouped(x: mx.array, labels: str, *groups: list[str]) -> mx.array:
        kept = [i for group in (batch, *groups) for i in group]
        x = x.sum([labels.index(i) for i in labels if i not in kept], stream=on)
        labels = "".join(i for i in labels if i in kept)
        x = x.transpose([labels.index(i) for i in kept], stream=on)
        shape = [math.prod(sizes[i] for i in group) for group in groups]
        return mx.reshape(x, [sizes[i] for i in batch] + shape, stream=on)

    # (batch..., M, K) @ (batch..., K, N)
    y = matmul(
        grouped(a, left, rows, inner),
        grouped(b, right, inner, columns),
        device=device,
        stream=stream,
    )
    order = batch + rows + columns
    y = mx.reshape(y, [sizes[i] for i in order], stream=on)
    return y.transpose([order.index(i) for i in out], stream=on)


def _labels(subscripts: str) -> tuple[str, str, str]:
    """Labels of both operands and of the result of einsum."""
    form = r"([a-zA-Z]*),([a-zA-Z]*)(?:->([a-zA-Z]*))?"
    match = re.fullmatch(form, subscripts.replace(" ", ""))
    left, right, out = match.groups() if match else ("", "", "")
    if "..." in subscripts or any(len(set(x)) < len(x) for x in (left, right)):
        raise NotImplementedError(
            f"[mlx_ane.einsum] subscripts are {subscripts!r}, need single labels, "
            f"each once an operand; write out the axes and take diagonals before."
        )
    if out is None:
        out = "".join(sorted(set(left) ^ set(right)))
    if not match or not set(out) <= set(left + right) or len(set(out)) < len(out):
        raise ValueError(
            f"[mlx_ane.einsum] subscripts are {subscripts!r}, need two operands of "
            f"letters and a result that repeats none, such as 'bij,bjk->bik'."
        )
    return left, right, out


def _sizes(labels: dict[str, str], arrays: dict[str, mx.array]) -> dict[str, int]:
    """The size of each label; axes of one label must agree."""
    sizes: dict[str, int] = {}
    for name, x in arrays.items():
        if x.ndim != len(labels[name]):
            raise ValueError(
                f"[mlx_ane.einsum] {name} has shape {x.shape}, need one axis for each "
                f"of the labels {labels[name]!r}."
            )
        for label, size in zip(labels[name], x.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ValueError(
                    f"[mlx_ane.einsum] label {label!r} has size {sizes[label]} in a "
                    f"and {size} in b; axes of one label must have one size."
                )
    return sizes


def plain_linear(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """The product in plain MLX, which a capture can export."""
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def bad_argument(where: str, stream: object, **arrays: object) -> ValueError:
    """The sentence behind a failed overload match: the first wrong argument."""
    for name, value in arrays.items():
        optional = name in ("bias", "mask", "sinks", "weights")
        if not isinstance(value, mx.array) and not (optional and value is None):
            return ValueError(
                f"[mlx_ane.{where}] {name} is {type(value).__name__}, need mx.array; "
                f"pass mx.array({name})."
            )
    return ValueError(
        f"[mlx_ane.{where}] stream is {stream!r}, need an MLX CPU stream or None; "
        f"pass mx.cpu, and our devices as device=."
    )
