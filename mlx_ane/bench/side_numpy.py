"""NumPy's side of the benchmark: its matmul, on the BLAS of its wheel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import embedding_inputs, embedding_sample, gemm_inputs, gemm_sample
from .timing import Timed


def info() -> dict[str, str]:
    """Version and BLAS."""
    blas = np.show_config("dicts")["Build Dependencies"]["blas"]
    return {"numpy": f"{np.__version__} ({blas.get('name')} {blas.get('version')})"}


def task(part: str, spec: dict[str, Any]) -> Timed:
    """The task of a part."""
    parts = {"embedding": _embedding, "gemm": _gemm}
    if part not in parts:
        raise ValueError(f"[mlx_ane.bench] numpy has no part {part!r}.")
    return parts[part](spec)


def _embedding(spec: dict[str, Any]) -> Timed:
    """The lookup of tokens and the gradient of the table."""
    x = embedding_inputs(spec)

    def run() -> tuple[NDArray[Any], NDArray[Any]]:
        y = x["w"][x["tokens"]]
        dw = np.zeros_like(x["w"])
        np.add.at(dw, x["tokens"], x["dy"])
        return y, dw

    return Timed(run, lambda: embedding_sample(spec, *run()))


def _gemm(spec: dict[str, Any]) -> Timed:
    """dx or dW."""
    arrays = gemm_inputs(spec)
    left = arrays["dy"] if spec["role"] == "dx" else arrays["dy"].T
    right = arrays["w"] if spec["role"] == "dx" else arrays["x"]
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    return Timed(
        lambda: np.matmul(left, right, out=out), lambda: gemm_sample(left @ right)
    )
