"""Counterparts of mlx.core.fast on a device of ours."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import resolve
from mlx_ane.ops import bad_argument


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    device: str | None = None,
    stream: Any = None,
) -> mx.array:
    """``softmax(scale * q @ k.T + mask) @ v``, as MLX's function of this name.

    Grouped heads are allowed: n_q_heads is a multiple of n_kv_heads.

    Args:
        q (array): Queries, shape (B, n_q_heads, T_q, D).
        k (array): Keys, shape (B, n_kv_heads, T_kv, D).
        v (array): Values, shape (B, n_kv_heads, T_kv, D_v).
        scale (float): Factor of the scores, usually 1 / sqrt(D).
        mask (str or array, optional): "causal", a boolean array (True attends) or
            an array that is added; broadcast to (B, n_q_heads, T_q, T_kv).
        sinks (array, optional): One logit a head, shape (n_q_heads,), that takes
            part in the softmax and has no value.
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
    *,
    label_smoothing: float = 0.0,
    stream: Any = None,
) -> mx.array:
    """``logsumexp(x) - (1 - s) x[target] - s mean(x)``, one read of the logits.

    The losses of ``mlx.nn.losses.cross_entropy`` with integer targets, computed
    and differentiated by one fused CPU kernel each.

    Args:
        logits (array): Unnormalised scores, shape (..., V), a float type.
        targets (array): Class indices, shape (...), an integer type. An index
            outside 0 .. V - 1 gives NaN.
        label_smoothing (float, optional): s, in [0, 1).
        stream (Stream or Device, optional): An MLX CPU stream.

    Returns:
        array: float32 losses, shape (...).

    Raises:
        ValueError: If shapes, dtypes, label_smoothing or stream do not fit.
    """
    if capturing():
        return nn.losses.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    try:
        return _ext.cross_entropy(logits, targets, label_smoothing, stream=stream)
    except TypeError as error:
        raise bad_argument(
            "fast.cross_entropy", stream, logits=logits, targets=targets
        ) from error


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
