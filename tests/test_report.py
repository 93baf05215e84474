"""Reports of convert: their lead, groups and width, and granularity "auto"."""

from __future__ import annotations

import re
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from test_convert import LORA, Zoo, linear_to_lora_layers, tiny_llama

import mlx_ane as ane
from mlx_ane import autotune, planner
from mlx_ane.estimate import Estimate, choose_granularity, hint

TOKENS = (1, 64)


def lora_model() -> nn.Module:
    model = tiny_llama()
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    return model


def test_the_lead_counts_layers_calls_and_fallbacks(engine: str) -> None:
    model = lora_model()
    report = ane.convert(model, device=engine)
    assert report.lead == f"15 of 15 layers on {engine}, no call yet"
    mx.eval(model(mx.zeros(TOKENS, mx.int32)))
    assert report.lead == f"15 of 15 layers, 100 % of calls on {engine}, 0 fallbacks"
    mx.eval(model(mx.zeros((1, 8), mx.int32)), model(mx.zeros((1, 8), mx.int32)))
    assert report.lead == f"15 of 15 layers, 33 % of calls on {engine}, 0 fallbacks"


def test_the_lead_counts_what_was_not_converted_and_what_failed() -> None:
    ane.set_fallback("allow")
    model = Zoo()
    report = ane.convert(model, device="emulated")
    with ane.emulated.faults("nan:call=2"):
        mx.eval(model(mx.ones((64, 64))))
    assert report.lead.startswith("6 of 8 layers, ")
    assert report.lead.endswith(", 1 fallback")
    assert re.search(r"^FALLBACK \w+: 1 calls of ", str(report), re.M)
    assert "85 % of calls on emulated" in report.lead


def test_layers_of_a_shape_are_one_line(engine: str) -> None:
    model = lora_model()
    report = ane.convert(model, device=engine, attention="fused")
    mx.eval(model(mx.zeros(TOKENS, mx.int32)))
    text = str(report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["gate_proj, up_proj x 4"][:6] == ["96", "x", "64", engine, "4", "4"]
    assert rows["k_proj, v_proj x 4"][:6] == ["32", "x", "64", engine, "4", "4"]
    assert text.count("low-rank matrices") == 1  # 14 wrappers
    assert "model.embed_tokens: as_linear only" in lines
    full = report.full()
    assert full.splitlines()[0] == report.lead
    for path in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"):
        assert re.search(rf"^{path}\.linear +ANELinear ", full, re.M)


def test_layers_whose_products_a_block_makes_are_left_out(engine: str) -> None:
    model = lora_model()
    report = ane.convert(model, device=engine, granularity="block")
    mx.eval(model(mx.zeros(TOKENS, mx.int32)))
    assert re.search(rf"^layers\.\* x 2 +{engine} +2 +2 ", str(report), re.M)
    assert "q_proj, o_proj x 4" not in str(report)
    assert "model.layers.0.self_attn.q_proj.linear" in report.full()
    mx.eval(model(mx.zeros((1, 8), mx.int32)))  # few rows: by layers
    assert "q_proj, o_proj x 4" in str(report)


def test_a_model_that_attends_itself_has_a_name() -> None:
    model = nn.MultiHeadAttention(64, 4)
    report = ane.convert(model, device="emulated", attention="fused")
    assert "attention on emulated: MultiHeadAttention\n" in f"{report}\n"
    assert report.to_dict()["attention"][0]["path"] == "MultiHeadAttention"


def test_prompts_and_notebooks_show_the_summary() -> None:
    report = ane.convert(tiny_llama(), device="cpu")
    assert repr(report) == f"<ConversionReport: {report.lead}>"
    assert report._repr_html_() == f"<pre>{report}</pre>".replace("'", "&#x27;")


def test_time_elsewhere(monkeypatch) -> None:
    report = ane.convert(nn.Sequential(nn.Linear(64, 64)), device="emulated")
    live = {"calls": 1, "on_device": 1, "placed": {}, "fallback": {}, "ms": 0.0}
    monkeypatch.setattr(
        ane.ConversionReport, "placement", lambda self: {"layers.0": live}
    )
    clock = iter([10.0, 14.0])
    monkeypatch.setattr("mlx_ane.report.time.perf_counter", lambda: next(clock))
    with report.timed():
        live["ms"] = 1000.0
    assert report.outside == 0.75
    assert report.lead.endswith(", 75 % of time elsewhere")
    assert report.to_dict()["outside"] == 0.75


# -- granularity "auto" -----------------------------------------------------------


def estimate(layers: float, blocks: float | None, gpu: float) -> Estimate:
    return Estimate(TOKENS, "step", layers, blocks, gpu, 1.0)


@pytest.mark.parametrize(
    ("times", "use_gpu", "chosen"),
    [
        ((2.0, 1.0, 0.5), False, "block"),
        ((2.0, 1.0, 0.5), True, "layer"),  # where layers may stay on the GPU
        ((2.0, 1.0, 1.5), True, "block"),
        ((1.0, 2.0, 3.0), False, "layer"),
        ((1.0, None, 3.0), False, "layer"),
    ],
)
def test_the_faster_granularity_is_chosen(times, use_gpu: bool, chosen: str) -> None:
    found, why = choose_granularity(estimate(*times), "M4", use_gpu)
    assert found == chosen
    if times[1] is not None:
        assert "1000 ms by" in why and ("on the GPU" in why) == use_gpu


@pytest.mark.parametrize(
    ("times", "granularity", "faster"),
    [
        ((2.0, 1.0, 0.5), "layer", "granularity 'block' (1000 ms), MLX's GPU"),
        ((2.0, 1.0, 0.5), "block", "MLX's GPU, which then is not free (500 ms)"),
        ((2.0, 1.0, 1.5), "layer", "granularity 'block' (1000 ms)"),
        ((2.0, 1.0, 0.95), "block", None),  # too close
        ((1.0, 2.0, 3.0), "layer", None),
        ((1.0, None, 0.5), "layer", "MLX's GPU, which then is not free (500 ms)"),
    ],
)
def test_what_is_faster_is_said(times, granularity: str, faster: str | None) -> None:
    found = hint(estimate(*times), "M4", granularity)
    assert (faster in found) if faster else not found


def test_auto_takes_what_is_estimated_faster() -> None:
    model = lora_model()
    found = ane.plan(model, (4, 256), chip="M4")
    step = found.estimates[1]
    assert step.blocks < step.layers
    report = ane.convert(
        model, device="emulated", granularity="auto", batch_shape=(4, 256)
    )
    assert report.granularity == "block"
    assert report.why.startswith("granularity 'block': a step on M4 is estimated at ")
    assert " ".join(str(report).split()).count(report.why) == 1
    blocks = [c.path for c in report.converted if not c.shape]
    assert blocks == ["model.layers.0", "model.layers.1"]
    assert report.lead == "2 blocks, 15 of 15 layers on emulated, no call yet"
    asked = ane.convert(ane.revert(model), device="emulated", batch_shape=(4, 256))
    assert asked.granularity == "layer" and asked.why == ""
    assert "faster: granularity 'block' (" in asked.hint
    assert asked.hint in " ".join(str(asked).split())
    # Unasked, nothing is estimated.
    assert ane.convert(model, device="emulated").hint == ""


def test_auto_counts_what_was_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    model = lora_model()
    seen = []

    def planned(model, shapes, chip=None, device=None):
        seen.append((shapes, chip, device))
        return real(model, shapes, device="emulated")

    real = planner.planned
    monkeypatch.setattr(sys.modules["mlx_ane.convert"], "planned", planned)
    options = {"device": "emulated", "granularity": "auto", "policy": "auto"}
    monkeypatch.setattr(
        autotune, "measure", lambda *_: ({"emulated": 1e-3, "cpu": 9e-3}, None)
    )
    report = ane.convert(model, **options, objective="free_gpu", batch_shape=TOKENS)
    # The emulated engine's own times are no chip's: none is asked for.
    assert seen == [([TOKENS], "h16g", None)]
    assert "measured here, device 'emulated', 5 products" in str(
        real(model, [TOKENS], device="emulated")
    ).replace("\n    ", " ")
    assert report.granularity == "block"
    assert {c.device for c in report.converted} == {"emulated"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"device": "cpu"}, "the CPU runs layers"),
        ({"precision": "exact"}, "the CPU runs layers"),
        ({"precision": "high"}, "blocks have no precision 'high'"),
        ({"policy": "frozen"}, "blocks have no policy 'frozen'"),
    ],
)
def test_auto_takes_layers_where_blocks_cannot(options, why: str) -> None:
    options = {"device": "emulated", **options}
    report = ane.convert(tiny_llama(), granularity="auto", **options)
    assert report.why == f"granularity 'layer': {why}"
    assert all(c.shape for c in report.converted)


def test_auto_without_a_shape() -> None:
    numbers = nn.Sequential(nn.Linear(64, 64))
    report = ane.convert(numbers, device="emulated", granularity="auto")
    assert report.why.endswith("the model takes no 512 tokens; pass batch_shape")
    report = ane.convert(tiny_llama(), device="emulated", granularity="auto")
    assert "estimated at" in report.why
    with pytest.raises(ValueError, match="neither tokens nor numbers of shape"):
        ane.convert(numbers, device="emulated", batch_shape=(1, 65))


def test_auto_leaves_the_model_as_it_was() -> None:
    model = lora_model()
    model.train()
    before = [(type(m), m.training) for m in model.modules()]
    state = mx.array(mx.random.state[0])
    ane.convert(model, device="emulated", granularity="auto", batch_shape=TOKENS)
    ane.revert(model)
    assert [(type(m), m.training) for m in model.modules()] == before
    assert mx.array_equal(mx.random.state[0], state)
