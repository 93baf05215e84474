"""The caches that live between calls: staged weights, programs, memory of outputs."""

from __future__ import annotations

import re

from mlx_ane import _ext

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def clear_cache() -> None:
    """Drop what is kept between calls: weights, programs and memory for outputs.

    What a call is using stays. Counters, settings and disabled devices are as
    before; see :func:`mlx_ane.reset_counters` and
    :func:`mlx_ane.restore_devices`.
    """
    _ext.clear_cache()


def set_cache_limit(limit: int | str) -> int:
    """Bound each of the three caches: staged weights, programs, memory of outputs.

    Without it each may take a quarter of the machine's memory; the memory of outputs
    never takes more than ``MLX_ANE_OUTPUT_CACHE`` either. What exceeds a new limit is
    dropped at once, unless a call is using it. A weight that finds no room is packed
    for each call, and a call whose program finds none runs on the CPU's BLAS: with
    limit 0 every call.

    Args:
        limit (int or str): Bytes, or text with a unit: "512MB" and "1.5GB" are
            powers of 1000, "1GiB" is a power of 1024.

    Returns:
        int: The previous limit in bytes.

    Raises:
        ValueError: If the limit is negative or no number of bytes.

    Example:
        >>> previous = ane.set_cache_limit("1GiB")
        >>> ane.set_cache_limit(previous)
        1073741824
    """
    return _ext.set_cache_limit(_bytes(limit))


def _bytes(limit: object) -> int:
    found = None
    if isinstance(limit, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[KMGT]i?B)?", limit.strip(), re.I)
        if match:
            unit = (match[2] or "B").upper()
            found = int(float(match[1]) * _UNITS[unit])
    elif isinstance(limit, int) and not isinstance(limit, bool):
        found = limit
    if found is None or not 0 <= found < 2**63:
        raise ValueError(
            f"[mlx_ane.set_cache_limit] limit is {limit!r}, need bytes of 0 or more, "
            f"such as 1000000000, '1GB' or '512MiB'."
        )
    return found
