"""tools/compare.py lora: the same losses as mlx_lm.lora."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fine_tuning import eager, models  # noqa: F401

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import compare  # noqa: E402


@pytest.mark.slow
def test_both_commands_end_at_the_same_loss(models, device: str) -> None:
    found = compare.compare_lora(models[False], device, iters=10, rounds=1)
    assert found["relative difference"] < 5e-3
    assert set(found["tokens/s"]) == {"plain MLX", "mlx_ane"}
    first = found["rounds"][0]["mlx_ane"]
    assert first["tokens/s"] > 0
    assert first["train loss"] < 6


def test_dataset_is_rows_of_text(tmp_path: Path) -> None:
    compare.write_data(tmp_path, 40)
    parts = {
        name: [
            json.loads(r)["text"] for r in (tmp_path / name).read_text().splitlines()
        ]
        for name in ("train.jsonl", "valid.jsonl")
    }
    assert [len(rows) for rows in parts.values()] == [40, 40]
    assert parts["train.jsonl"] != parts["valid.jsonl"]
    assert {len(row) for rows in parts.values() for row in rows} == {compare.PIECE}
