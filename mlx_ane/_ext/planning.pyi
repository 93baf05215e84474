"""Programs of a matmul."""

from typing import Any


def plan_matmul(s: int, k: int, n: int, chip: str) -> dict[str, Any]:
    """Tiles (begin, size, padded) of y (s, n) = x (s, k) w (n, k).T."""

def limits(chip: str) -> dict[str, Any]:
    """Limits of a chip that decide placement, by name."""
