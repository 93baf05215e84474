"""Programs of a matmul."""

from typing import Any


def plan_matmul(s: int, k: int, n: int, chip: str) -> dict[str, Any]:
    """Tiles (begin, size, padded) of y (s, n) = x (s, k) w (n, k).T."""

def limits(chip: str) -> dict[str, Any]:
    """Limits of a chip that Python needs, by name."""

def device_limits(device: str) -> dict[str, Any]:
    """The same of a device: what the self-test measured counts."""

def chip(text: str, where: str = 'mlx_ane') -> dict[str, Any]:
    """name, architecture and generation of a chip; ValueError otherwise."""

def min_rows() -> int:
    """Calls of fewer rows go to the BLAS."""
