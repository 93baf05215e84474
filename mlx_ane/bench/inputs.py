"""Inputs of the benchmark, equal in every process, and what must come out.

Needs NumPy alone: the processes of other libraries load it without mlx_ane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Spec = dict[str, Any]
Arrays = dict[str, NDArray[Any]]

BETAS = (0.9, 0.999)
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
EPS = 1e-8


def uniform(seed: int, *shape: int) -> NDArray[Any]:
    """float32 in [-0.5, 0.5)."""
    return np.random.default_rng(seed).random(shape, np.float32) - np.float32(0.5)


def adam_inputs(spec: Spec) -> list[Arrays]:
    """p, g, m and v of each tensor; v is positive."""
    return [
        {
            "p": uniform(4 * i, *shape),
            "g": uniform(4 * i + 1, *shape),
            "m": uniform(4 * i + 2, *shape) * np.float32(0.1),
            "v": (uniform(4 * i + 3, *shape) + np.float32(0.6)) * np.float32(0.01),
        }
        for i, shape in enumerate(spec["shapes"])
    ]


def sample(x: NDArray[Any]) -> NDArray[Any]:
    """Some elements of a result: enough to see that it is right."""
    flat = x.reshape(-1)
    return flat[:: max(1, flat.size // 997)].copy()


def adam_expected(spec: Spec) -> NDArray[Any]:
    """Sampled parameters after one AdamW step, in float64."""
    out = []
    for tensor in adam_inputs(spec):
        p, g, m, v = (sample(tensor[k]).astype(np.float64) for k in "pgmv")
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        step = LEARNING_RATE * m / (np.sqrt(v) + EPS)
        out.append(p * (1 - LEARNING_RATE * WEIGHT_DECAY) - step)
    return np.concatenate(out)


def gemm_inputs(spec: Spec) -> Arrays:
    """x (S, K), w (N, K) and dy (S, N)."""
    S, K, N = spec["S"], spec["K"], spec["N"]
    return {"x": uniform(1, S, K), "w": uniform(2, N, K), "dy": uniform(3, S, N)}


def gemm_sample(y: NDArray[Any]) -> NDArray[Any]:
    """Rows of a product: the first and the last."""
    return np.concatenate([y[:4], y[-4:]]).astype(np.float64)


def gemm_expected(spec: Spec, rounding: str) -> NDArray[Any]:
    """gemm_sample of dx = dy w or dW = dy' x, in float64, of rounded inputs."""
    x = {k: round_to(v, rounding) for k, v in gemm_inputs(spec).items()}
    left = x["dy"] if spec["role"] == "dx" else x["dy"].T
    right = x["w"] if spec["role"] == "dx" else x["x"]
    return gemm_sample(left) @ right.astype(np.float64)


def round_to(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """x rounded to float32, float16 or bfloat16, as float32."""
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        return to_bfloat16(x).astype(np.uint32).__lshift__(16).view(np.float32)
    return x


def to_bfloat16(x: NDArray[Any]) -> NDArray[Any]:
    """Bits of x as bfloat16, rounded to nearest even; uint16."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def embedding_inputs(spec: Spec) -> Arrays:
    """A table w (V, D), tokens (S,) of which a quarter repeat, and dy (S, D)."""
    V, D, S = spec["vocabulary"], spec["dim"], spec["S"]
    tokens = np.random.default_rng(0).integers(0, V, (S,)).astype(np.int32)
    tokens[S - S // 4 :] = tokens[: S // 4]
    return {"w": uniform(1, V, D), "tokens": tokens, "dy": uniform(2, S, D)}


def embedding_sample(
    spec: Spec, y: NDArray[Any], dw: NDArray[Any]
) -> NDArray[np.float64]:
    """Rows that were looked up, their gradients, and sums of the whole gradient."""
    tokens = embedding_inputs(spec)["tokens"]
    rows = np.concatenate([tokens[:4], tokens[-4:]])
    parts = [y[:4], y[-4:], dw[rows], dw.sum(0, dtype=np.float64)[None]]
    return np.concatenate([part.astype(np.float64) for part in parts])


def embedding_expected(spec: Spec) -> NDArray[np.float64]:
    """embedding_sample of y = w[tokens] and dw, the rows of dy by token, in float64."""
    x = embedding_inputs(spec)
    dw = np.zeros(x["w"].shape)
    np.add.at(dw, x["tokens"], x["dy"].astype(np.float64))
    return embedding_sample(spec, x["w"][x["tokens"]], dw)


def step_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Parameters of the Llama-style model with a tied head, by name."""
    D, F, V = spec["dim"], spec["hidden"], spec["vocabulary"]
    shapes: dict[str, tuple[int, ...]] = {"embed": (V, D), "norm": (D,)}
    for i in range(spec["layers"]):
        shapes |= {f"{i}.{name}": (D, D) for name in ("q", "k", "v", "o")}
        shapes |= {f"{i}.gate": (F, D), f"{i}.up": (F, D), f"{i}.down": (D, F)}
        shapes |= {f"{i}.norm1": (D,), f"{i}.norm2": (D,)}
    return shapes


def step_inputs(spec: Spec) -> Arrays:
    """Weights by name, and the tokens (S + 1,)."""
    arrays = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else uniform(i, *shape) * np.float32(2.0 / np.sqrt(shape[-1]))
        for i, (name, shape) in enumerate(step_shapes(spec).items())
    }
    tokens = np.random.default_rng(0).integers(0, spec["vocabulary"], spec["S"] + 1)
    return arrays | {"tokens": tokens.astype(np.int32)}
