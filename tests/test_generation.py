"""Generation by mlx_lm from converted models, and tools/compare.py generation."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import pytest

import mlx_ane as ane

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
mlx_lm = pytest.importorskip("mlx_lm")

import compare  # noqa: E402

TINY = compare.gpt.Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    out = tmp_path_factory.mktemp("model")
    compare.save_random(out, TINY)
    return out


@pytest.fixture(autouse=True)
def eager():
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_a_token_is_placed_on_the_blas(folder: Path, device: str) -> None:
    model, tokenizer = mlx_lm.load(str(folder))
    plain = mlx_lm.generate(model, tokenizer, "import ", max_tokens=24)
    ane.convert(model, device=device)
    ane.reset_counters()
    # A prompt of 7 tokens: fewer rows than the device is worth starting for.
    assert mlx_lm.generate(model, tokenizer, "import ", max_tokens=24) == plain
    counts = ane.counters()
    reason = "placed_device_cpu" if device == "cpu" else "placed_few_rows"
    # mlx_lm computes a token ahead: some layers of it may still be under way.
    assert counts[reason] >= 24 * 15
    assert counts["device_calls"] == 0
    assert not [k for k, n in counts.items() if k.startswith("fallback_") and n]


def test_comparison_times_both_models(folder: Path, device: str) -> None:
    found = compare.compare_generation(folder, device, tokens=8, rounds=2)
    assert set(found["generation, tokens/s"]) == {"plain MLX", "converted"}
    assert min(found["generation, tokens/s"].values()) > 0
    assert sum(found["placements"].values()) >= 3 * 8 * 15
