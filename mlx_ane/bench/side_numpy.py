"""NumPy's side of the benchmark: its matmul, on the BLAS of its wheel."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inputs import gemm_inputs, gemm_sample
from .timing import Timed


def info() -> dict[str, str]:
    """Version and BLAS."""
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]
    return {"numpy": f"{np.__version__} ({blas.get('name')} {blas.get('version')})"}


def task(part: str, spec: dict[str, Any]) -> Timed:
    """dx or dW."""
    if part != "gemm":
        raise ValueError(f"[mlx_ane.bench] numpy has no part {part!r}.")
    arrays = gemm_inputs(spec)
    left = arrays["dy"] if spec["role"] == "dx" else arrays["dy"].T
    right = arrays["w"] if spec["role"] == "dx" else arrays["x"]
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    return Timed(
        lambda: np.matmul(left, right, out=out), lambda: gemm_sample(left @ right)
    )
