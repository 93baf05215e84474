"""Whole models: a sample of docs/models.md, MLX's own transformer, a vision model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

import mlx_ane as ane

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import model_table  # noqa: E402

# Attention of each kind, experts, recurrences, convolutions, fused projections.
SAMPLE = ["llama", "gemma2", "gpt2", "mixtral", "deepseek_v3", "mamba2", "lfm2"]


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """Rows of docs/models.md by architecture."""
    lines = model_table.PAGE.read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells if len(row) == 5}


@pytest.mark.parametrize("name", SAMPLE)
def test_architecture_is_as_documented(name: str, table: dict[str, list[str]]) -> None:
    row = model_table.measure(name)
    assert row.failure == ""
    assert row.forward < 5e-3
    assert row.gradient is not None
    assert row.gradient < 1e-2
    documented = table[name]
    measured = [c.strip() for c in model_table._line(row).strip("|").split("|")]
    assert measured[:3] == documented[:3], "run tools/model_table.py"


@pytest.mark.slow
def test_every_architecture_is_as_documented(table: dict[str, list[str]]) -> None:
    for name in model_table.architectures():
        row = model_table.measure(name)
        assert row.failure == "" if name in table else row.failure
        if name in table:
            assert str(row.converted) == table[name][1], name


class Encoder(nn.Module):
    """A sentence encoder of BERT's shape: MLX's transformer, mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.positions = nn.Embedding(64, 64)
        self.encoder = nn.TransformerEncoder(2, 64, 4, 96)
        self.pooler = nn.Linear(64, 64)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embedding(tokens) + self.positions(mx.arange(tokens.shape[1]))
        return mx.tanh(self.pooler(self.encoder(x, None).mean(axis=1)))


class Vision(nn.Module):
    """Convolutions, then a two-layer head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Sequential(nn.Linear(8 * 49, 64), nn.GELU(), nn.Linear(64, 10))

    def __call__(self, images: mx.array) -> mx.array:
        x = nn.relu(self.norm(self.stem(images)))
        return self.head(x.reshape(x.shape[0], -1))


def inputs(kind: type[nn.Module]) -> mx.array:
    if kind is Encoder:
        return mx.random.randint(0, 100, (8, 16))
    return mx.random.normal((48, 15, 15, 3))


@pytest.mark.parametrize(("kind", "layers"), [(Encoder, 15), (Vision, 2)])
def test_other_models_match_plain_mlx(
    kind: type[nn.Module], layers: int, device: str
) -> None:
    model = kind()
    x = inputs(kind)

    def loss(x: mx.array) -> mx.array:
        return mx.square(model(x)).sum()

    def run() -> tuple[mx.array, dict[str, Any]]:
        _, gradients = nn.value_and_grad(model, loss)(x)
        return model(x), dict(tree_flatten(gradients))

    expected, expected_gradients = run()
    mx.eval(expected, expected_gradients)
    report = ane.convert(model, device=device)
    got, gradients = run()
    mx.eval(got, gradients)
    assert len(report.converted) == layers
    output, gradient = (1e-5, 1e-4) if device == "cpu" else (2e-3, 1e-2)
    assert error(got, expected) < output
    for name in gradients:
        assert error(gradients[name], expected_gradients[name]) < gradient, name
    if kind is Vision:
        assert {s.kind for s in report.skipped} == {"Conv2d"}


def error(got: mx.array, expected: mx.array) -> float:
    """Relative to the norm of what is expected; absolute where that vanishes."""
    scale = max(mx.linalg.norm(expected.flatten()).item(), 1e-3)
    return mx.linalg.norm((got - expected).flatten()).item() / scale


def test_mixture_of_experts_says_why_it_stays() -> None:
    model = model_table.build("mixtral")
    report = ane.convert(model, device="cpu")
    (reason,) = {s.reason for s in report.skipped}
    assert reason == (
        "a mixture of experts: each token picks its weight (mx.gather_mm); "
        "it stays on MLX"
    )
    assert all(s.kind == "SwitchLinear" and len(s.shape) == 3 for s in report.skipped)
    nn.quantize(model, group_size=32, bits=4)
    again = ane.convert(model, device="cpu")
    assert {s.kind for s in again.skipped} == {"QuantizedSwitchLinear"}
    assert {s.reason for s in again.skipped} == {reason}
