"""Blocks of mlx-lm's architectures as programs: a sample, and with -m slow all."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import block_table

# Grouped heads, layer norms, sinks, convolutions, a recurrence, fused projections.
SAMPLE = ["qwen3", "gpt2", "gpt_neox", "gemma2", "lfm2", "mamba2", "phi3", "stablelm"]


@pytest.fixture(autouse=True)
def uncompiled() -> None:
    mx.disable_compile()  # each fused kernel would go through the C++ compiler
    yield
    mx.enable_compile()


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    rows = block_table.measure(name)
    assert rows
    for row in rows:
        assert row.failure == ""
        assert row.forward is not None and row.forward < 3e-3
        assert row.backward is not None and row.backward < 1e-2


def test_routing_is_refused_by_name() -> None:
    (row,) = block_table.measure("mixtral")
    assert row.forward is None
    assert "ArgPartition near 0.block_sparse_moe.gate.weight" in row.failure


#: Where fp16 rounds over a jump, or a gradient of one number cancels.
ROUGH = {"afm7", "talkie"}


@pytest.mark.slow
def test_all() -> None:
    names = block_table.architectures()
    rows = [row for name in names for row in block_table.measure(name)]
    counts = block_table.summary(rows)
    assert counts["forward"] >= 105
    assert counts["backward"] >= 102
    for row in rows:
        if row.architecture not in ROUGH:
            assert (row.forward or 0) < 3e-3, row
            assert (row.backward or 0) < 1e-2, row
