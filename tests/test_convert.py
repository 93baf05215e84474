"""convert() and revert(): what is exchanged, what is not and why, all or nothing."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.utils import linear_to_lora_layers

import mlx_ane as ane
from mlx_ane import _ext

LORA = {"rank": 4, "scale": 2.0, "dropout": 0.0}


def tiny_llama(tied: bool = True, layers: int = 2) -> llama.Model:
    """A few layers, as mlx-lm builds them."""
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=64,
            num_hidden_layers=layers,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=80,
            tie_word_embeddings=tied,
        )
    )


class Zoo(nn.Module):
    """Layers wherever a model may keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.in_list = [nn.Linear(64, 64), [nn.Linear(64, 64)]]
        self.in_dict = {"a": nn.Linear(64, 64, bias=False)}
        self.quantized = nn.Linear(64, 64).to_quantized()
        self.table = nn.Embedding(10, 64)
        self.subclass = MyLinear(64, 64)
        self.conv = nn.Conv1d(64, 64, 3)
        self.norm = nn.RMSNorm(64)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.again(mx.tanh(self.first(x)))
        x = self.in_list[1][0](mx.tanh(self.in_list[0](x)))
        x = self.quantized(mx.tanh(self.in_dict["a"](x)))
        x = self.subclass(self.norm(x))
        return self.table.as_linear(mx.tanh(x))


class MyLinear(nn.Linear):
    """A subclass that does something else."""

    def __call__(self, x: mx.array) -> mx.array:
        return 2.0 * super().__call__(x)


def arrays(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def same_objects(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)


def test_every_place_is_found_and_the_rest_has_a_reason(device: str) -> None:
    model = Zoo()
    before = arrays(model)
    x = mx.random.normal((40, 64))
    expected = exact(model(x))
    report = ane.convert(model, device=device)
    assert [c.path for c in report.converted] == [
        "first",
        "in_list.0",
        "in_list.1.0",
        "in_dict.a",
        "quantized",
        "table",
    ]
    assert report.converted[0].aliases == ["again"]
    assert model.again is model.first
    assert type(model.in_list[1][0]) is ane.nn.ANELinear
    assert type(model.in_dict["a"]) is ane.nn.ANELinear
    assert type(model.quantized) is ane.nn.ANEQuantizedLinear
    assert type(model.table) is ane.nn.ANEEmbedding
    reasons = {s.path: s.reason for s in report.skipped}
    assert set(reasons) == {"subclass", "conv"}
    assert "subclass of nn.Linear" in reasons["subclass"]
    assert same_objects(before, arrays(model))
    assert norm_error(model(x), expected) <= (1e-5 if device == "cpu" else 1e-2)


def test_revert_restores_the_same_objects(device: str) -> None:
    model = Zoo()
    model.first.freeze(keys=["weight"])
    before, kinds = arrays(model), [type(m) for m in model.modules()]
    ane.convert(model, device=device)
    assert ane.revert(model) is model
    assert same_objects(before, arrays(model))
    assert [type(m) for m in model.modules()] == kinds
    assert model.first._no_grad == {"weight"}
    assert model.again is model.first


def test_revert_after_training_keeps_the_trained_arrays() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    ane.convert(model, device="cpu")
    trained = mx.zeros((8, 8))
    model.layers[0].weight = trained
    ane.revert(model)
    assert model.layers[0].weight is trained


def test_attributes_of_a_layer_survive(device: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model.layers[0].note = "kept"
    model.layers[0].scale = mx.array(3.0)
    ane.convert(model, device=device)
    assert model.layers[0].note == "kept"
    assert model.layers[0].scale.item() == 3.0
    ane.revert(model)
    assert model.layers[0].note == "kept"
    assert model.layers[0].scale.item() == 3.0


def test_llama_with_a_tied_head(device: str) -> None:
    model = tiny_llama()
    tokens = mx.arange(48)[None] % 80
    expected = exact(model(tokens))
    report = ane.convert(model, device=device)
    assert not report.skipped
    assert len(report.converted) == 1 + 2 * 7
    assert norm_error(model(tokens), expected) <= (1e-5 if device == "cpu" else 1e-2)
    head = report.placement()["model.embed_tokens"]
    assert head["calls"] == 1


@pytest.mark.parametrize("order", ["convert first", "LoRA first"])
@pytest.mark.parametrize("quantized", [False, True])
def test_lora_in_either_order(device: str, order: str, quantized: bool) -> None:
    model = tiny_llama(tied=False)
    model.freeze()
    if quantized:
        nn.quantize(model, group_size=32, bits=8)
    if order == "convert first":
        ane.convert(model, device=device)
        linear_to_lora_layers(model, 2, LORA)
    else:
        linear_to_lora_layers(model, 2, LORA)
        report = ane.convert(model, device=device)
        assert any("low-rank" in s.reason for s in report.skipped)
    base = model.model.layers[1].self_attn.q_proj.linear
    kind = ane.nn.ANEQuantizedLinear if quantized else ane.nn.ANELinear
    assert type(base) is kind
    assert base.device == device
    trainable = [p for p, _ in tree_flatten(model.trainable_parameters())]
    assert trainable and all(p.endswith(("lora_a", "lora_b")) for p in trainable)
    tokens = mx.arange(48)[None] % 80

    def loss(tokens: mx.array) -> mx.array:
        return mx.mean(mx.square(model(tokens)))

    ane.reset_counters()
    mx.eval(nn.value_and_grad(model, loss)(tokens))
    counts = ane.counters()
    assert counts["linear_calls"] == 2 * 7 * 3 + 1
    assert counts["gemm_dw"] == 2 * 7 * 2  # of the adapters alone
    assert counts["gemm_dx"] > 0


def test_dora_is_reported(device: str) -> None:
    model = tiny_llama(tied=False)
    linear_to_lora_layers(model, 2, LORA, use_dora=True)
    report = ane.convert(model, device=device)
    reasons = {s.path: s.reason for s in report.skipped}
    path = "model.layers.0.self_attn.q_proj.linear"
    assert "DoRALinear multiplies with the weight" in reasons[path]
    assert [c.path for c in report.converted] == ["model.embed_tokens", "lm_head"]


def test_predicate_gets_path_and_module() -> None:
    model = Zoo()
    seen = []

    def predicate(path: str, module: nn.Module) -> bool:
        seen.append((path, type(module)))
        return path.startswith("in_")

    report = ane.convert(model, device="cpu", class_predicate=predicate)
    assert seen[0] == ("first", nn.Linear)
    assert [c.path for c in report.converted] == [
        "in_list.0",
        "in_list.1.0",
        "in_dict.a",
    ]
    assert {s.path: s.reason for s in report.skipped}["first"] == (
        "class_predicate said no"
    )
    assert type(model.first) is nn.Linear


def test_predicate_may_answer_options() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    options = {"layers.0": {"device": "emulated", "precision": "high"}}
    report = ane.convert(
        model, device="cpu", class_predicate=lambda p, m: options.get(p, True)
    )
    assert [c.device for c in report.converted] == ["emulated", "cpu"]
    assert model.layers[0]._precision == "high"
    assert model.layers[1]._precision == "default"


def test_precision_high_is_not_for_quantised_weights() -> None:
    report = ane.convert(Zoo(), device="cpu", precision="high")
    reasons = {s.path: s.reason for s in report.skipped}
    assert "precision 'high' is for weights that are not" in reasons["quantized"]
    assert len(report.converted) == 5


def test_precision_exact_is_fp32_on_the_blas(engine: str) -> None:
    model = Zoo()
    x = mx.random.normal((40, 64))
    expected = exact(model(x))
    report = ane.convert(model, device=engine, precision="exact")
    assert {c.device for c in report.converted} == {"cpu"}
    assert norm_error(model(x), expected) <= 1e-5
    assert ane.counters()["placed_device_cpu"] == ane.counters()["linear_calls"]
    assert report.full().count("precision 'exact': fp32 on the BLAS") == 6
    auto = ane.convert(model, device=engine, precision="exact", policy="auto")
    assert {c.device for c in auto.converted} == {"cpu"}


def test_policy_frozen(engine: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.layers[0].freeze()
    report = ane.convert(model, device=engine, policy="frozen")
    assert [c.device for c in report.converted] == [engine, "cpu"]
    model.layers[1].freeze()
    assert [c.device for c in report.converted] == [engine, engine]


def test_matrices_of_the_model_itself_are_named() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = mx.ones((64,))
            self.positions, self.classes = mx.zeros((8, 64)), mx.zeros((1, 1, 64))
            self.out = nn.Linear(64, 64)

        def __call__(self, x: mx.array) -> mx.array:
            return self.out(x + self.positions)

    assert set(ane.plan(Positions(), (8, 64)).skipped) == {"positions, classes"}
    (skipped,) = ane.convert(Positions(), device="cpu").skipped
    assert skipped.path == "positions, classes" and skipped.shape == (8, 64)


def test_converting_again_places_anew() -> None:
    model = Zoo()
    before = arrays(model)
    ane.convert(model, device="cpu")
    report = ane.convert(model, device="emulated")
    assert {c.device for c in report.converted} == {"emulated"}
    assert len(report.converted) == 6
    report = ane.convert(
        model, device="emulated", class_predicate=lambda p, m: p != "first"
    )
    assert type(model.first) is type(model.again) is nn.Linear
    assert same_objects(before, arrays(model))


class Boom(Exception):
    pass


def explode(path: str, module: nn.Module) -> bool:
    if path == "table":
        raise Boom
    return True


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_predicate": explode}, Boom, "^$"),
        ({"class_predicate": lambda p, m: "yes"}, ValueError, "returned 'yes' for"),
        (
            {"class_predicate": lambda p, m: {"devise": "cpu"}},
            ValueError,
            "option 'devise'",
        ),
        (
            {
                "class_predicate": lambda p, m: (
                    {"device": "gpu"} if p == "table" else True
                )
            },
            ValueError,
            "device is 'gpu'",
        ),
        ({"device": "tpu"}, ValueError, "device is 'tpu'"),
        ({"device": 3}, ValueError, "device is 3"),
        ({"policy": "some"}, ValueError, "policy is 'some'"),
        (
            {"policy": lambda p, m: "cpu"},
            ValueError,
            "policy is .* need one of 'all', 'frozen', 'auto'; to choose .* pass "
            "class_predicate",
        ),
        (
            {"class_predicate": lambda p, m: {"policy": lambda p, m: "cpu"}},
            ValueError,
            "policy is .* class_predicate",
        ),
        ({"class_predicate": "up"}, ValueError, "class_predicate is 'up', need a call"),
        ({"precision": "fp64"}, ValueError, "precision is 'fp64'"),
    ],
)
def test_a_failure_converts_nothing(arguments, error, message) -> None:
    model = Zoo()
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(error, match=message):
        ane.convert(model, **arguments)
    assert [type(m) for m in model.modules()] == kinds


def test_corrupt_checkpoint_is_named_and_converts_nothing() -> None:
    model = Zoo()
    model.in_dict["a"].bias = mx.zeros((5,))
    with pytest.raises(ValueError, match=r"in_dict\.a has weight \(64, 64\) and bias"):
        ane.convert(model, device="cpu")
    assert type(model.first) is nn.Linear
    model = Zoo()
    model.quantized.scales = mx.zeros((64, 3))
    with pytest.raises(ValueError, match=r"quantized .* scales \(64, 3\), need"):
        ane.convert(model, device="cpu")
    assert type(model.first) is nn.Linear


@pytest.mark.parametrize("model", [nn.Linear(4, 4), ane.nn.ANELinear(4, 4), None, [1]])
def test_models_that_cannot_be_changed_in_place(model: object) -> None:
    with pytest.raises(ValueError, match=r"\[mlx_ane.convert\] model is"):
        ane.convert(model)
    with pytest.raises(ValueError, match=r"\[mlx_ane.revert\] model is"):
        ane.revert(model)


def test_integer_weight_is_skipped() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model.layers[0].weight = mx.zeros((4, 4), mx.int8)
    report = ane.convert(model, device="cpu")
    assert "its weight is mlx.core.int8" in report.skipped[0].reason


def test_report_prints_live_placement(engine: str) -> None:
    model = Zoo()
    report = ane.convert(model, device=engine)
    # The long call takes two programs, and is still one call.
    mx.eval(model(mx.random.normal((2100, 64))), model(mx.random.normal((2, 64))))
    text = report.full()
    assert text.startswith(f"6 of 8 layers, 50 % of calls on {engine}, 0 fallbacks\n")
    row = next(line for line in text.splitlines() if line.startswith("in_list.0"))
    assert row.split()[:8] == [
        "in_list.0",
        "ANELinear",
        "64",
        "x",
        "64",
        engine,
        "2",
        "1",
    ]
    assert "placed few_rows: 1" in row
    assert "shared with again" in text
    plain = json.loads(json.dumps(report.to_dict()))
    found = {c["path"]: c for c in plain["converted"]}
    assert found["in_list.0"]["placed"] == {"few_rows": 1}
    assert found["in_list.0"]["fallback"] == {}
    assert plain["skipped"][0]["reason"]


def test_models_of_equal_paths_are_counted_apart(device: str) -> None:
    models = [nn.Sequential(nn.Linear(64, 64)) for _ in range(3)]
    reports = [ane.convert(model, device=device) for model in models]
    for calls, model in enumerate(models):
        for _ in range(calls):
            mx.eval(model(mx.zeros((40, 64))))

    def calls() -> list[int]:
        return [r.placement()["layers.0"]["calls"] for r in reports]

    assert calls() == [0, 1, 2]
    reports[1] = ane.convert(models[1], device=device)  # the same layer, placed anew
    assert calls() == [0, 1, 2]
    # A name is used again once its layer is gone, with counts of its own.
    names = {c.layer._name for r in reports for c in r.converted}
    del models[2], model, reports[2]
    new = nn.Sequential(nn.Linear(64, 64))
    reports.append(ane.convert(new, device=device))
    assert calls() == [0, 1, 0]
    assert {c.layer._name for r in reports for c in r.converted} == names


def test_layer_counts_sum_to_the_calls_made(device: str) -> None:
    model = tiny_llama()
    report = ane.convert(model, device=device)
    for length in (3, 48, 64):
        mx.eval(model(mx.zeros((1, length), mx.int32)))
    live = report.placement().values()
    counts = _ext.counters()
    calls = sum(row["calls"] for row in live)
    assert calls == counts["linear_calls"] == 3 * 15
    placed = sum(sum(row["placed"].values()) for row in live)
    on_device = sum(row["on_device"] for row in live)
    assert placed == (calls if device == "cpu" else 15)
    assert on_device == calls - placed
