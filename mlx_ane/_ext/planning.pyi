"""Programs of a matmul."""



def plan_matmul(s: int, k: int, n: int, chip: str) -> dict:
    """Tiles (begin, size, padded) of y (s, n) = x (s, k) w (n, k).T."""

def limits(chip: str) -> dict:
    """Limits of a chip that decide placement, by name."""
