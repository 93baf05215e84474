"""torch's side of the benchmark: fused AdamW, matmul, and the training step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from .inputs import (
    BETAS,
    EPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    adam_inputs,
    embedding_inputs,
    embedding_sample,
    gemm_inputs,
    gemm_sample,
    sample,
    step_inputs,
)
from .timing import Timed, WithParts


def info() -> dict[str, str]:
    """Version, threads and BLAS."""
    blas = "MKL" if torch.backends.mkl.is_available() else "no MKL"
    return {"torch": f"{torch.__version__}, {torch.get_num_threads()} threads, {blas}"}


def task(part: str, spec: dict[str, Any]) -> Timed:
    """The task of a part."""
    parts = {"adam": _adam, "embedding": _embedding, "gemm": _gemm, "step": _step}
    return parts[part](spec)


def _optimizer(parameters: list[torch.Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )


def _adam(spec: dict[str, Any]) -> Timed:
    tensors = adam_inputs(spec)
    parameters = [torch.nn.Parameter(torch.from_numpy(t["p"])) for t in tensors]
    optimizer = _optimizer(parameters)
    for p, t in zip(parameters, tensors, strict=True):
        p.grad = torch.from_numpy(t["g"])
        # A step so late that the bias correction, which MLX leaves out, is none.
        optimizer.state[p] = {
            "step": torch.tensor(1e5),
            "exp_avg": torch.from_numpy(t["m"]),
            "exp_avg_sq": torch.from_numpy(t["v"]),
        }

    def first() -> NDArray[Any]:
        optimizer.step()
        return np.concatenate([sample(p.detach().numpy()) for p in parameters])

    return Timed(optimizer.step, first)


def _embedding(spec: dict[str, Any], least: float = 0.02) -> Timed:
    """The lookup of tokens and the gradient of the table."""
    arrays = {k: torch.from_numpy(v) for k, v in embedding_inputs(spec).items()}
    w = torch.nn.Parameter(arrays["w"])
    tokens = arrays["tokens"].long()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        y = F.embedding(tokens, w)
        (dw,) = torch.autograd.grad(y, w, arrays["dy"])
        return y.detach(), dw

    return Timed(
        run, lambda: embedding_sample(spec, *(x.numpy() for x in run())), least
    )


def _gemm(spec: dict[str, Any]) -> Timed:
    dtype = getattr(torch, spec.get("dtype", "float32"))
    arrays = {k: torch.from_numpy(v).to(dtype) for k, v in gemm_inputs(spec).items()}
    left = arrays["dy"] if spec["role"] == "dx" else arrays["dy"].T
    right = arrays["w"] if spec["role"] == "dx" else arrays["x"]
    out = torch.empty(left.shape[0], right.shape[1], dtype=dtype)
    return Timed(
        lambda: torch.mm(left, right, out=out),
        lambda: gemm_sample(torch.mm(left, right).float().numpy()),
    )


class _Model(torch.nn.Module):
    """The model of inputs.step_shapes."""

    def __init__(self, spec: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        super().__init__()
        self.spec = spec
        self.w = torch.nn.ParameterDict(
            {
                name.replace(".", "_"): torch.from_numpy(x)
                for name, x in arrays.items()
                if name != "tokens"
            }
        )
        half = spec["dim"] // spec["heads"] // 2
        angles = torch.arange(spec["S"])[:, None] * 10000.0 ** (
            -torch.arange(half) / half
        )
        self.cos, self.sin = angles.cos(), angles.sin()

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)

    def _attention(self, x: torch.Tensor, i: int) -> torch.Tensor:
        # x: (S, D) -> heads (H, S, C)
        q, k, v = (
            F.linear(x, self.w[f"{i}_{name}"])
            .view(x.shape[0], self.spec["heads"], -1)
            .transpose(0, 1)
            for name in "qkv"
        )
        y = F.scaled_dot_product_attention(
            self._rotate(q)[None], self._rotate(k)[None], v[None], is_causal=True
        )[0]
        return F.linear(y.transpose(0, 1).reshape(x.shape), self.w[f"{i}_o"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the next token; tokens: (S + 1,)."""
        x = F.embedding(tokens[:-1], self.w["embed"])
        for i in range(self.spec["layers"]):
            h = F.rms_norm(x, x.shape[-1:], self.w[f"{i}_norm1"], 1e-5)
            x = x + self._attention(h, i)
            h = F.rms_norm(x, x.shape[-1:], self.w[f"{i}_norm2"], 1e-5)
            gate = F.silu(F.linear(h, self.w[f"{i}_gate"]))
            up = F.linear(h, self.w[f"{i}_up"])
            x = x + F.linear(gate * up, self.w[f"{i}_down"])
        x = F.rms_norm(x, x.shape[-1:], self.w["norm"], 1e-5)
        return F.cross_entropy(F.linear(x, self.w["embed"]), tokens[1:].long())


def _step(spec: dict[str, Any]) -> Timed:
    arrays = step_inputs(spec)
    model = _Model(spec, arrays)
    tokens = torch.from_numpy(arrays["tokens"]).long()
    optimizer = _optimizer(list(model.parameters()))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    parts = {"embedding": _embedding(spec, least=0.0)}
    return WithParts(step, lambda: np.array([step()]), parts)
