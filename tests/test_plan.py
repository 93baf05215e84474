"""plan(): programs, placement, memory and time without running anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from test_convert import LORA, Zoo, linear_to_lora_layers, tiny_llama

import mlx_ane as ane
from mlx_ane import autotune, chips, cli, planner
from mlx_ane._console import some
from mlx_ane.estimate import Estimate, advice, milliseconds, two_digits

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


def test_the_page_shows_the_tables() -> None:
    page = (ROOT / "docs" / "cost_model.md").read_text()
    for table in (cost_model.table(), cost_model.totals()):
        assert table in page, "run python tools/cost_model.py --write"


def test_every_figure_has_a_source() -> None:
    for chip in chips.CHIPS.values():
        figures = (chip.floor, chip.bandwidth, chip.compute, chip.gpu, chip.cpu)
        for figure in (*figures, chip.memory, chip.host):
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
    s, k, n = 64, 64, 96
    model = nn.Sequential(nn.Linear(k, n, bias=False))
    _, m5 = chips.find("M5")
    forward, step = ane.plan(model, (s, k), chip="M5").estimates
    flops, host = 2 * s * k * n, m5.host.value
    engine = m5.seconds(flops, 2 * (s * k + n * k + s * n)) + 6 * s * (k + n) / host
    packing = 6 * k * n / host  # it is trained
    adam = 28 * k * n / m5.memory.value
    assert forward.layers == pytest.approx(engine + packing)
    assert forward.blocks is None
    assert forward.gpu == pytest.approx(m5.gpu_launch.value + flops / m5.gpu.value)
    assert forward.cpu == pytest.approx(m5.cpu_launch.value + flops / m5.cpu.value)
    # Nothing upstream is trained: the weight's gradient alone.
    assert step.layers == pytest.approx(forward.layers + forward.cpu + adam)
    assert step.gpu == pytest.approx(2 * forward.gpu + adam)
    assert step.cpu == pytest.approx(2 * forward.cpu + adam)
    model.freeze()
    (frozen,) = ane.plan(model, (s, k), chip="M5").estimates
    assert frozen.layers == pytest.approx(engine)


def test_several_lengths_have_their_own_totals() -> None:
    model = tiny_llama()
    plan = ane.plan(model, [(1, 64), (2, 96)], chip="M4")
    assert [(e.shape, e.what) for e in plan.estimates] == [
        (shape, what) for shape in ((1, 64), (2, 96)) for what in ("forward", "step")
    ]
    assert plan.estimates[:2] == ane.plan(model, (1, 64), chip="M4").estimates
    assert plan.estimates[2:] == ane.plan(model, (2, 96), chip="M4").estimates


def stories(lora: bool) -> nn.Module:
    """Stories110M, its weights never computed; LoRA of rank 8 in all layers."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12}
    model = llama.Model(
        llama.ModelArgs("llama", **sizes, **heads, rms_norm_eps=1e-5, vocab_size=32000)
    )
    if lora:
        model.freeze()
        linear_to_lora_layers(model, 12, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    return model


@pytest.mark.parametrize(
    ("model", "lora", "layers", "blocks", "gpu"),
    [
        (cost_model.qwen, True, 1993, 1021, 1132),
        (cost_model.qwen, False, 3326, 2131, 1720),
        (stories, True, 411, 199, 201),
        (stories, False, 655, 414, 309),
    ],
)
def test_large_models_as_they_were_estimated_by_hand(
    model, lora: bool, layers: int, blocks: int, gpu: int
) -> None:
    """On an M4, 1024 tokens: estimates in ms that were made apart from this code."""
    step = ane.plan(model(lora), (1, 1024), chip="M4").estimates[-1]
    assert 1e3 * step.layers == pytest.approx(layers, rel=0.075)
    assert 1e3 * step.gpu == pytest.approx(gpu, rel=0.075)
    # By hand trained weights were packed once a step, not in both programs, and their
    # gradients were computed beside the engine.
    if not lora:
        weights = {cost_model.qwen: 440.4e6, stories: 84.9e6}[model]
        blocks += 1e3 * 2 * 1024 * weights / chips.find("M4")[1].cpu.value
    assert 1e3 * step.blocks == pytest.approx(blocks, rel=0.04 if lora else 0.12)


class MLP(nn.Module):
    """A block of two layers; forward 4 S D H operations."""

    def __init__(self, d: int = 64, h: int = 96, odd: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(d, h, bias=False), nn.Linear(h, d, bias=False)
        self.odd = odd

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.down(nn.relu(self.up(x)))
        return mx.sort(x, axis=-1) if self.odd else x


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = list(blocks)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_cost_what_their_programs_move_and_compute() -> None:
    s, d, h = 64, 64, 96
    model, m4 = Stack(MLP(d, h)), chips.find("M4")[1]
    forward, step = ane.plan(model, (1, s, d), chip="M4").estimates
    flops = 4 * s * d * h
    weights, x = 2 * d * h, s * d
    moved, converted = 2 * (weights + 2 * x), weights + 2 * x
    expected = m4.seconds(flops, moved) + 6 * converted / m4.host.value
    assert forward.blocks == pytest.approx(expected)
    # dy, x and both weights in; x and dy are host's operands, what is between is out.
    taps = 2 * s * h
    moved, converted = 2 * (weights + 2 * x + taps), weights + 2 * x + taps
    engine = m4.seconds(flops, moved) + 6 * converted / m4.host.value
    adam = 28 * weights / m4.memory.value
    assert step.blocks == pytest.approx(forward.blocks + engine + adam, rel=0.02)


def test_gradients_that_nothing_needs_are_not_counted() -> None:
    model = Stack(*(MLP() for _ in range(4)))
    everything = ane.plan(model, (1, 64, 64), chip="M4")
    model.freeze()
    model.layers[-1].unfreeze()
    last = ane.plan(model, (1, 64, 64), chip="M4")
    alone = ane.plan(Stack(model.layers[-1]), (1, 64, 64), chip="M4")

    def backward(plan: ane.Plan, way: str) -> float:
        forward, step = plan.estimates
        return getattr(step, way) - getattr(forward, way)

    for way in ("layers", "blocks", "gpu", "cpu"):
        assert backward(last, way) == pytest.approx(backward(alone, way))
        assert backward(last, way) < 0.3 * backward(everything, way)
    assert everything.block_programs == 3  # the first block needs no dx
    assert last.block_programs == 2
    model.freeze()
    assert [e.what for e in ane.plan(model, (1, 64, 64)).estimates] == ["forward"]


def test_private_arrays_are_not_trained() -> None:
    class Private(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._table = mx.zeros((64, 64))

        def __call__(self, x: mx.array) -> mx.array:
            return x

    def last_alone(*blocks: nn.Module) -> ane.Plan:
        model = Stack(*blocks)
        model.freeze()
        model.layers[-1].unfreeze()
        return ane.plan(model, (1, 64, 64), chip="M4")

    plain = last_alone(MLP(), MLP())
    assert last_alone(Private(), MLP(), MLP()).estimates == plain.estimates


def test_a_model_that_forgets_to_be_a_module() -> None:
    class Forgets(Stack):
        def __init__(self, *blocks: nn.Module) -> None:  # as recurrent_gemma's
            dict.__init__(self, layers=list(blocks))
            self.__dict__["_training"] = True

    plans = [
        ane.plan(model, (1, 64, 64), chip="M4")
        for model in (Stack(MLP(), MLP()), Forgets(MLP(), MLP()))
    ]
    assert plans[0].to_dict() == plans[1].to_dict()


def test_a_block_that_is_no_program_says_why_and_counts_its_layers() -> None:
    odd, plain = Stack(MLP(odd=True)), Stack(MLP())
    plan = ane.plan(odd, (1, 64, 64), chip="M4")
    assert [b.path for b in plan.blocks] == ["layers.0"]
    assert "Sort" in plan.blocks[0].why and plan.blocks[0].why in str(plan)
    assert plan.block_programs == 0
    assert [e.blocks for e in plan.estimates] == [None, None]
    layers = [e.layers for e in ane.plan(plain, (1, 64, 64), chip="M4").estimates]
    assert [e.layers for e in plan.estimates] == pytest.approx(layers)
    few = ane.plan(plain, (1, 8, 64), chip="M4")
    assert [b.why for b in few.blocks] == ["few rows"]


def test_a_capture_that_fails_is_no_error_of_the_plan(monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("[custom_kernel] cannot be exported")

    monkeypatch.setattr(planner, "block_of", fails)
    plan = ane.plan(Stack(MLP()), (1, 64, 64), chip="M4")
    assert [b.why for b in plan.blocks] == ["cannot be exported"]
    assert plan.estimates[1].blocks is None


def test_parts_of_a_block_are_programs_where_the_whole_is_not() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = MLP()

        def __call__(self, x: mx.array) -> mx.array:
            return mx.sort(self.mlp(x), axis=-1)

    model = Stack(Odd())
    plan = ane.plan(model, (1, 64, 64), chip="M4")
    assert [(b.path, b.why == "") for b in plan.blocks] == [
        ("layers.0", False),
        ("layers.0.mlp", True),
    ]
    whole = ane.plan(Stack(MLP()), (1, 64, 64), chip="M4").estimates
    assert [e.blocks for e in plan.estimates] == pytest.approx(
        [e.blocks for e in whole]
    )


FASTER = "On M5 the GPU is faster than the engine: about 100 ms a step; the engine "
FASTER += "frees it: expect "


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ((900, 430, 100, 700), FASTER + "about 430 ms by blocks."),
        (
            (900, None, 100, 700),
            FASTER + "about 900 ms by layers; the CPU's BLAS alone (device 'cpu') is "
            "estimated at 700 ms.",
        ),
        (
            (120, 400, 100, 700),
            "On M5 engine and GPU are too close to tell: about 120 ms a step by "
            "layers, 100 ms on the GPU; the engine leaves it free.",
        ),
        (
            (120, 40, 100, 700),
            "On M5 the engine is faster: about 40 ms a step by blocks, 100 ms on the "
            "GPU, which stays free.",
        ),
    ],
)
def test_advice(times, words: str) -> None:
    seconds = [t and t / 1e3 for t in times]
    assert advice(Estimate((1, 64), "step", *seconds), "M5") == words
    assert "a forward pass" in advice(Estimate((1, 64), "forward", *seconds), "M5")


def test_two_digits_and_bands() -> None:
    numbers = [1234, 996, 99.6, 12.34, 1.96, 0.0345, 0]
    words = ["1200", "1000", "100", "12", "2.0", "0.035", "0"]
    assert [two_digits(n) for n in numbers] == words
    assert milliseconds(0.403) == "400 [200 - 810]"


def test_short_names_of_layers() -> None:
    paths = [f"model.layers.{i}.self_attn.q_proj.linear" for i in range(3)]
    assert some(paths) == "q_proj x 3"
    assert some(["layers.0", "layers.12"]) == "layers.* x 2"
    assert some(["up", "down"]) == "up, down x 2"
    assert (
        some(["model.layers.0.block_sparse_moe.gate"]) == "...0.block_sparse_moe.gate"
    )
    assert len(some([f"a{i}_long_name" for i in range(9)])) <= 26


@pytest.mark.parametrize("chip", ["M1", "M4 Max", "M5"])
def test_the_text_fits_a_terminal_and_concludes(chip: str) -> None:
    plan = ane.plan(cost_model.qwen(lora=True), [(1, 8), (4, 512)], chip=chip)
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert plan.advice in text
    assert repr(plan) == f"<Plan: {plan.advice}>"
    assert plan._repr_html_().startswith("<pre>plan for ")
    for figure in plan.figures.values():
        assert figure.source in text
    for found in plan.estimates:
        for way in ("layers", "blocks", "gpu", "cpu"):
            seconds = getattr(found, way)
            assert seconds is None or milliseconds(seconds) in text
    assert "trained layers are packed" not in text
    assert "trained layers are packed" in str(ane.plan(MLP(), (1, 64, 64)))


def test_what_this_machine_measured_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(64, 96, bias=False))
    model.freeze()
    shape, published = (64, 64), ane.plan(model, (64, 64), chip="M4")
    assert published.figures["host conversion, byte/s"] == chips.HOST_BANDWIDTH
    found = planner.planned(model, [shape], device="emulated")
    assert found.figures["host conversion, byte/s"].source == "measured here"
    product = autotune.Product(64, 96, mx.float32, True)
    store = autotune.Measurements("emulated")
    store._add(product.key(64), {"emulated": 3.0, "cpu": 2.0, "gpu": 1.0})
    (forward,) = planner.planned(model, [shape], device="emulated").estimates
    started = chips.GPU_LAUNCH.value, chips.CPU_LAUNCH.value
    assert forward.layers == pytest.approx(3.0)
    assert forward.gpu == pytest.approx(1.0 + started[0])
    assert forward.cpu == pytest.approx(2.0 + started[1])
    text = str(planner.planned(model, [shape], device="emulated"))
    assert "measured here, device 'emulated', 1 products" in " ".join(text.split())
    # Another chip than this machine's is not what was measured.
    assert ane.plan(model, shape, chip="M2").estimates[0].layers < 0.1


def test_rates_are_those_of_the_variant() -> None:
    base, pro, most = (chips.find(name)[1] for name in ("M5", "M5 Pro", "M5 Max"))
    assert (base.gpu.value, pro.gpu.value, most.gpu.value) == (12.5e12, 25e12, 50e12)
    assert "scaled from 20 to 10 GPU cores" in base.gpu.source
    assert chips.find("M2 Max")[1].cpu.value == 2 * chips.find("h14")[1].cpu.value


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


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 96,
    "tie_word_embeddings": False,
}


def plan_of(folder: Path, capsys, config: dict, *flags: str) -> dict:
    """What `mlx-ane plan --json` says of a folder that has a config only."""
    (folder / "config.json").write_text(json.dumps(config))
    assert cli.main(["plan", str(folder), "--chip", "M2", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_command(tmp_path, capsys) -> None:
    config = LLAMA | {"quantization": {"group_size": 32, "bits": 4, "lm_head": False}}
    plan = plan_of(tmp_path, capsys, config, "--seq", "64", "128")
    assert plan["chip"] == "M2 (h14)"
    assert plan["shapes"] == [[1, 64], [1, 128]]
    kinds = {call["path"]: call["kind"] for call in plan["calls"]}
    assert kinds["model.layers.0.mlp.up_proj.linear"] == "ANEQuantizedLinear"
    assert kinds["lm_head"] == "ANELinear"
    assert plan["staged_bytes"] > 0
    assert len(plan["estimates"]) == 4
    assert plan["advice"].startswith("On M2 ")
    assert cli.main(["plan", str(tmp_path), "--seq", "64", "--chip", "M2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("plan for M2 (h14); times in ms")
    assert "ANEForge" in text
    assert cli.main(["plan", str(tmp_path / "missing")]) == 1


def test_the_command_trains_what_it_is_told(tmp_path, capsys) -> None:
    block = 4 * 64 * 64 - 2 * 64 * 32 + 3 * 64 * 128
    lora = 8 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    for flags, trained in [
        ((), 2 * lora),
        (("--num-layers", "1"), lora),
        (("--fine-tune-type", "full", "--num-layers", "1"), block + 2 * 64),
        (("--fine-tune-type", "full", "--num-layers", "-1"), 2 * (block + 2 * 64)),
    ]:
        plan = plan_of(tmp_path, capsys, LLAMA, *flags)
        assert plan["trained_parameters"] == trained
    assert cli.main(["plan", str(tmp_path), "--num-layers", "0"]) == 1
    assert "--num-layers is 0, need 1 or more, or -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "linear"),
    [
        ({}, 4.0),
        ({"torch_dtype": "bfloat16"}, 2.0),
        ({"dtype": "float16"}, 2.0),
        # 4 bits, and a scale and a bias of 2 bytes each for 32 weights.
        (
            {
                "dtype": "bfloat16",
                "quantization_config": {"quant_method": "awq", "group_size": 32},
            },
            0.625,
        ),
        # 4 bits, and a scale of one byte for 32.
        (
            {"dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"}},
            0.53125,
        ),
        ({"dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, 2.0),
    ],
    ids=["none", "torch_dtype", "dtype", "awq", "mxfp4", "undone"],
)
def test_weights_are_those_of_the_checkpoint(given, linear, tmp_path, capsys) -> None:
    plan = plan_of(tmp_path, capsys, LLAMA | given)
    sizes = {call["path"]: call["weight_bytes"] for call in plan["calls"]}
    assert sizes["model.layers.0.mlp.up_proj.linear"] == 64 * 128 * linear
    assert sizes["lm_head"] == 96 * 64 * (4 if not given else 2)


def test_weights_of_a_folder_that_has_them(tmp_path, capsys) -> None:
    model = tiny_llama(tied=False)
    model.set_dtype(mx.float16)
    nn.quantize(model, 32, 8, class_predicate=lambda p, m: p.endswith("up_proj"))
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), dict(ane_parameters(model))
    )
    config = LLAMA | {"intermediate_size": 96, "vocab_size": 80}
    config |= {"quantization": {"group_size": 32, "bits": 8}}
    plan = plan_of(tmp_path, capsys, config)
    sizes = {call["path"]: call["weight_bytes"] for call in plan["calls"]}
    assert sizes["model.layers.0.mlp.up_proj.linear"] == 64 * 96 * 1.125
    assert sizes["model.layers.0.mlp.gate_proj.linear"] == 64 * 96 * 2


def ane_parameters(model: nn.Module) -> list:
    return tree_flatten(model.parameters())
