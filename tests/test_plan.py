"""plan(): programs, placement, memory and time without running anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from test_convert import LORA, Zoo, linear_to_lora_layers, tiny_llama

import mlx_ane as ane
from mlx_ane import chips, cli

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import cost_model  # noqa: E402


@pytest.mark.parametrize("kind", ["llama", "split"])
def test_programs_are_those_that_run(engine: str, kind: str) -> None:
    if kind == "llama":
        model, shapes = tiny_llama(), [(1, 48), (2, 100), (1, 8)]
    else:  # K in three pieces, S in two tiles
        model, shapes = nn.Sequential(nn.Linear(3000, 32)), [(2100, 3000), (8, 3000)]
    plan = ane.plan(model, shapes)
    ane.convert(model, device=engine)
    dtype = mx.int32 if kind == "llama" else mx.float32
    for shape in plan.shapes:
        mx.eval(model(mx.zeros(shape, dtype)))
    counts = ane.counters()
    assert len(plan.programs) == counts["compiles"]
    on_engine = [call for call in plan.calls if call.place == "engine"]
    assert len(on_engine) == counts["device_calls"]
    assert sum(sum(c.programs.values()) for c in on_engine) == counts["evaluations"]
    assert len(plan.calls) - len(on_engine) == counts["placed_few_rows"]
    assert "few rows (8 < 32)" in str(plan)


def test_staged_bytes_are_those_of_the_store(engine: str) -> None:
    model = tiny_llama()
    assert ane.plan(model, (1, 48)).staged_bytes == 0  # trained: packed each call
    model.freeze()
    plan = ane.plan(model, (1, 48))
    ane.convert(model, device=engine)
    mx.eval(model(mx.zeros((1, 48), mx.int32)))
    assert plan.staged_bytes == ane._ext.cache_bytes() > 0


def test_nothing_is_computed() -> None:
    model = nn.Sequential(nn.Linear(20000, 20000), nn.Linear(20000, 20000))
    before = mx.get_active_memory()
    plan = ane.plan(model, (64, 20000), chip="M1")
    assert mx.get_active_memory() == before
    assert [call.k_splits for call in plan.calls] == [15, 15]
    assert [call.n_tiles for call in plan.calls] == [2, 2]  # 16384 on M1
    assert ane.plan(model, (64, 20000), chip="M4").calls[0].n_tiles == 1
    assert type(model.layers[0]) is nn.Linear


def test_budget_places_the_rest_on_the_cpu() -> None:
    model = nn.Sequential(*(nn.Linear(32 * i, 32 * i + 32) for i in range(1, 121)))
    plan = ane.plan(model, (64, 32), chip="h13")
    assert len(plan.programs) <= plan.budget == 96
    over = [call for call in plan.calls if call.why.startswith("over the budget of 96")]
    assert len(over) == 24
    assert {call.place for call in over} == {"cpu"}


def test_padding_over_a_length_distribution() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    assert ane.plan(model, [(1, 64, 64), (2, 64, 64)]).padding_waste == 0.0
    assert ane.plan(model, [(1, 33, 64), (1, 64, 64)]).padding_waste == (
        pytest.approx(1 - 97 / 128)
    )


def test_converted_wrapped_and_skipped_layers(device: str) -> None:
    model = Zoo()
    plain = ane.plan(model, (1, 40, 64))
    ane.convert(model, device=device)
    assert ane.plan(model, (1, 40, 64)).to_dict() == plain.to_dict()
    assert set(plain.skipped) == {"subclass", "conv"}
    assert [call.path for call in plain.calls].count("first") == 2
    lora = tiny_llama(tied=False)
    lora.freeze()
    linear_to_lora_layers(lora, 2, LORA)
    plan = ane.plan(lora, (1, 48))
    assert len(plan.calls) == 2 * 7 + 1
    assert all(call.frozen for call in plan.calls)


def test_cost_model_meets_reports() -> None:
    rows = cost_model.rows()
    chips_met = {row.machine.split()[0] for row in rows}
    assert chips_met == {"M1", "M2", "M3", "M4", "M5"}
    off = [f"{r.what}, {r.machine}" for r in rows if not 0.5 <= r.ratio <= 2]
    assert off == ["Qwen3-0.6B, a step, M5 Max"]  # docs/cost_model.md says why


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "cost_model.md").read_text()
    assert cost_model.table() in page, "run python tools/cost_model.py --write"


def test_every_figure_has_a_source() -> None:
    for chip in chips.CHIPS.values():
        for figure in (chip.floor, chip.bandwidth, chip.compute):
            assert figure.value > 0 and figure.source
        assert min(chip.watts.engine, chip.watts.cpu, chip.watts.gpu) > 0
        assert chip.watts.source
    assert chips.find("m3") == chips.find("h15") == chips.find("h15g")


@pytest.mark.parametrize(
    ("chip", "shown", "tiles"),
    [
        ("m2 max", "M2 Max (h14)", 2),
        ("h14g", "M2 (h14g)", 2),
        ("M3-Ultra", "M3 Ultra (h15)", 2),
        ("H16S", "M4 (h16s)", 1),
        ("M6", "M6 (h18)", 1),
    ],
)
def test_chips_have_the_limits_of_their_generation(
    chip: str, shown: str, tiles: int
) -> None:
    plan = ane.plan(nn.Sequential(nn.Linear(64, 20000)), (64, 64), chip=chip)
    assert plan.chip == shown
    assert plan.calls[0].n_tiles == tiles


def test_time_is_the_sum_of_the_calls() -> None:
    model = nn.Sequential(nn.Linear(64, 96))
    _, m5 = chips.find("M5")
    plan = ane.plan(model, (64, 64), chip="M5")
    engine = m5.seconds(2 * 64 * 64 * 96, 2 * (64 * 64 + 96 * 64 + 64 * 96))
    host = 6 * 64 * (64 + 96) / chips.HOST_BANDWIDTH.value
    assert plan.seconds == pytest.approx(engine + host)
    assert ane.plan(model, [(64, 64)] * 3, chip="M5").seconds == (
        pytest.approx(plan.seconds)
    )


@pytest.mark.parametrize(
    ("shape", "chip", "message"),
    [
        ((64, 64), "M9", r"\[mlx_ane.plan\] got chip \"M9\", need one of h13"),
        ((0, 64), None, "need positive integers"),
        ([(1, 64), ("a",)], None, "need positive integers"),
        ((64, 65), None, "neither tokens nor numbers of shape"),
    ],
)
def test_bad_arguments(shape, chip, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ane.plan(nn.Sequential(nn.Linear(64, 64)), shape, chip=chip)


def test_command(tmp_path, capsys) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 96,
        "tie_word_embeddings": False,
        "quantization": {"group_size": 32, "bits": 4, "lm_head": False},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = ["plan", str(tmp_path), "--seq", "64", "128", "--chip", "M2"]
    assert cli.main([*arguments, "--frozen", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["chip"] == "M2 (h14)"
    assert plan["shapes"] == [[1, 64], [1, 128]]
    kinds = {call["path"]: call["kind"] for call in plan["calls"]}
    assert kinds["model.layers.0.mlp.up_proj"] == "ANEQuantizedLinear"
    assert kinds["lm_head"] == "ANELinear"
    assert plan["staged_bytes"] > 0
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.startswith("plan for M2 (h14), batch shapes (1, 64), (1, 128)")
    assert "ANEForge" in text
    assert cli.main(["plan", str(tmp_path / "missing")]) == 1
