"""Counterparts of mlx.core.fast on a device of ours."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

# By name: a program may put our function in the place of this one.
from mlx.nn.losses import cross_entropy as composed

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import resolve
from mlx_ane._types import Device
from mlx_ane.ops import bad_argument


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    force_fused: bool = False,
    device: Device | None = None,
    stream: Any = None,
) -> mx.array:
    """``softmax(scale * q @ k.T + mask) @ v``, as MLX's function of this name.

    Grouped heads are allowed: n_q_heads is a multiple of n_kv_heads. Masks, types
    and gradients (of every array, the mask too) are MLX's: without keys the result
    is zero, a row whose keys are all hidden by a boolean or causal mask averages
    ``v``, and one that is -inf in every place is NaN.

    Args:
        q (array): Queries, shape (B, n_q_heads, T_q, D).
        k (array): Keys, shape (B, n_kv_heads, T_kv, D).
        v (array): Values, shape (B, n_kv_heads, T_kv, D_v). q, k and v are
            promoted to one type, which must be a float; MLX computes float64.
        scale (float): Factor of the scores, usually 1 / sqrt(D).
        mask (str or array, optional): "causal", a boolean array (True attends) or
            an array that is added, float or integer, of a dtype that promotes to
            that of q, k and v; broadcast to (B, n_q_heads, T_q, T_kv).
        sinks (array, optional): One logit a head, shape (n_q_heads,), that takes
            part in the softmax and has no value; a dtype as for ``mask``.
        force_fused (bool, optional): MLX's; nothing to force here.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None is
            :func:`mlx_ane.default_device`.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: Shape (B, n_q_heads, T_q, D_v).

    Raises:
        ValueError: If shapes, dtypes, mask, device or stream do not fit.
    """
    if isinstance(mask, str) and mask != "causal":
        raise ValueError(
            f"[mlx_ane.fast.scaled_dot_product_attention] mask is {mask!r}, "
            f"need 'causal', an array or None."
        )
    if not hasattr(scale, "__float__"):
        raise ValueError(
            f"[mlx_ane.fast.scaled_dot_product_attention] scale is {scale!r}, "
            f"need a number."
        )
    if capturing():
        return mx.fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=sinks
        )
    where = resolve(device, "fast.scaled_dot_product_attention")
    causal = isinstance(mask, str)
    array = None if causal else mask
    try:
        return _ext.attention(
            q, k, v, scale, array, sinks, causal, device=where, stream=stream
        )
    except TypeError as error:
        raise bad_argument(
            "fast.scaled_dot_product_attention",
            stream,
            q=q,
            k=k,
            v=v,
            mask=array,
            sinks=sinks,
        ) from error


def cross_entropy(
    logits: mx.array,
    targets: mx.array,
    weights: mx.array | None = None,
    axis: int = -1,
    label_smoothing: float = 0.0,
    reduction: str = "none",
    *,
    stream: Any = None,
) -> mx.array:
    """:func:`mlx.nn.losses.cross_entropy`, fused for targets that are class indices.

    The loss of x with target t is ``logsumexp(x) - (1 - s) x[t] - s mean(x)``, s the
    label smoothing. One CPU kernel computes it and one differentiates it, in fp32,
    for float32, float16 and bfloat16 logits. Targets that are probabilities, and
    logits of other types, are composed of MLX's operations.

    Args:
        logits (array): Unnormalised scores, shape (..., V, ...) with V at ``axis``.
        targets (array): Class indices, logits' shape without ``axis``, or
            probabilities of logits' shape. A negative index counts from the end. One
            outside -V .. V - 1, such as -100 for an ignored label, has loss and
            gradient 0; MLX itself reads there what lies in memory.
        weights (array, optional): Factors of the losses, of their shape.
        axis (int, optional): The axis of the classes. Default: ``-1``.
        label_smoothing (float, optional): s, in [0, 1).
        reduction (str, optional): "none", "mean" or "sum" of the weighted losses.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: Losses of logits' shape without ``axis``, or one; in the dtype of MLX's
        function, which is that of float logits.

    Raises:
        ValueError: If shapes, dtypes, axis, label_smoothing, reduction or stream do
            not fit.

    Example:
        >>> logits, targets = mx.zeros((3, 10)), mx.array([1, -100, 2])
        >>> ane.fast.cross_entropy(logits, targets)
        array([2.30259, 0, 2.30259], dtype=float32)
    """
    if capturing():
        return composed(logits, targets, weights, axis, label_smoothing, reduction)
    try:
        _check_losses(logits, targets, weights, axis, label_smoothing, reduction)
        on = mx.cpu if stream is None else stream
        indices = targets.ndim != logits.ndim
        if indices and logits.dtype in (mx.float32, mx.float16, mx.bfloat16):
            last = axis in (-1, logits.ndim - 1)
            rows = logits if last else mx.moveaxis(logits, axis, -1, stream=on)
            losses = _ext.cross_entropy(rows, targets, label_smoothing, stream=stream)
            losses = losses.astype(logits.dtype, stream=on)
        else:
            with mx.stream(on):
                losses = composed(logits, targets, None, axis, label_smoothing)
        if weights is not None:
            losses = mx.multiply(losses, weights, stream=on)
    except (AttributeError, TypeError) as error:
        raise bad_argument(
            "fast.cross_entropy",
            stream,
            logits=logits,
            targets=targets,
            weights=weights,
        ) from error
    if reduction == "mean":
        return mx.mean(losses, stream=on)
    return mx.sum(losses, stream=on) if reduction == "sum" else losses


def _check_losses(
    logits: mx.array,
    targets: mx.array,
    weights: mx.array | None,
    axis: int,
    label_smoothing: float,
    reduction: str,
) -> None:
    """One sentence for what mlx.nn.losses.cross_entropy would not take."""
    where = "[mlx_ane.fast.cross_entropy]"
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(
            f"{where} axis is {axis}, need one of the {logits.ndim} axes of logits "
            f"{logits.shape}."
        )
    kept = list(logits.shape)
    del kept[axis]
    if targets.shape not in (tuple(kept), logits.shape):
        raise ValueError(
            f"{where} targets have shape {targets.shape} and logits {logits.shape}, "
            f"need targets of shape {tuple(kept)}, or probabilities of logits' shape."
        )
    indices = targets.ndim != logits.ndim
    if indices and not mx.issubdtype(targets.dtype, mx.integer):
        raise ValueError(
            f"{where} class indices have dtype {str(targets.dtype)[9:]}, need "
            f"integers; cast them with astype."
        )
    if weights is not None and weights.shape != tuple(kept):
        raise ValueError(
            f"{where} weights have shape {weights.shape}, need that of the losses, "
            f"{tuple(kept)}."
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"{where} label_smoothing is {label_smoothing}, need a value in [0, 1)."
        )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(
            f"{where} reduction is {reduction!r}, need 'none', 'mean' or 'sum'."
        )


def swiglu(gate: mx.array, up: mx.array, *, stream: Any = None) -> mx.array:
    """``silu(gate) * up`` in one pass (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Args:
        gate (array): Any shape, a float type.
        up (array): The shape and dtype of ``gate``.
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: The shape and dtype of ``gate``.

    Raises:
        ValueError: If shapes, dtypes or stream do not fit.
    """
    if capturing():
        return nn.silu(gate) * up
    try:
        return _ext.swiglu(gate, up, stream=stream)
    except TypeError as error:
        raise bad_argument("fast.swiglu", stream, gate=gate, up=up) from error
