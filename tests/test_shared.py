"""Layers keep their identity: who else holds one holds the converted one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers
from processes import run_python
from test_convert import LORA, Zoo, tiny_llama

import mlx_ane as ane


class Head(nn.Module):
    """A head on a trunk that another model has too."""

    def __init__(self, trunk: nn.Module, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.out = nn.Linear(64, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(mx.tanh(self.trunk(x)))


def actor_and_critic() -> tuple[Head, Head]:
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    return Head(trunk, 4), Head(trunk, 1)


def modules(model: nn.Module) -> list[int]:
    return [id(module) for module in model.modules()]


def test_modules_stay_the_same_objects(device: str) -> None:
    model = Zoo()
    model.pair = (nn.Linear(64, 64), {"inner": nn.Linear(64, 64)})
    held = model.first, model.pair
    before, x = modules(model), mx.random.normal((40, 64))
    expected = exact(model.pair[0](x))
    report = ane.convert(model, device=device)
    assert modules(model) == before
    assert model.first is held[0] and type(held[0]) is ane.nn.ANELinear
    assert model.pair is held[1]
    assert type(held[1][1]["inner"]) is ane.nn.ANELinear
    assert {"pair.0", "pair.1.inner"} <= {c.path for c in report.converted}
    assert norm_error(model.pair[0](x), expected) <= 2e-3
    ane.revert(model)
    assert modules(model) == before
    assert type(held[0]) is type(held[1][0]) is nn.Linear
    assert not {"_device", "_name", "_precision"} & set(vars(held[0]))


def test_a_shared_trunk_stays_one(device: str) -> None:
    actor, critic = actor_and_critic()
    reports = [ane.convert(model, device=device) for model in (actor, critic)]
    assert actor.trunk is critic.trunk
    assert [len(report.converted) for report in reports] == [3, 3]
    x = mx.random.normal((40, 64))
    value = critic(x)
    step = nn.value_and_grad(actor, lambda x: mx.square(actor(x)).mean())
    optimizer = mlx.optimizers.SGD(0.5)
    optimizer.update(actor, step(x)[1])
    mx.eval(actor.parameters(), value)
    assert not mx.array_equal(critic(x), value)  # training the one moves the other
    weights = [model.trunk.layers[0].weight for model in (actor, critic)]
    assert weights[0] is weights[1]


def test_a_shared_layer_is_in_both_reports(device: str) -> None:
    actor, critic = actor_and_critic()
    first = ane.convert(actor, device="cpu")
    second = ane.convert(critic, device=device)
    shared = [
        {c.path: c for c in report.converted}["trunk.layers.0"]
        for report in (first, second)
    ]
    assert shared[0].layer is shared[1].layer is actor.trunk.layers[0]
    assert [c.device for c in shared] == [device, device]  # placed anew in both
    mx.eval(actor(mx.zeros((40, 64))), critic(mx.zeros((40, 64))))
    calls = [r.placement()["trunk.layers.0"]["calls"] for r in (first, second)]
    assert calls == [2, 2]
    assert first.placement()["out"]["calls"] == second.placement()["out"]["calls"] == 1


def test_a_shared_layer_that_is_plain_again_is_reported_so() -> None:
    actor, critic = actor_and_critic()
    report = ane.convert(actor, device="cpu")
    mx.eval(actor(mx.zeros((40, 64))))
    ane.convert(critic, device="cpu", class_predicate=lambda p, m: p == "out")
    assert type(actor.trunk.layers[0]) is nn.Linear
    rows = {row["path"]: row for row in report.to_dict()["converted"]}
    assert rows["trunk.layers.0"]["device"] == "mlx"
    assert rows["trunk.layers.0"]["calls"] == 1
    assert rows["out"]["device"] == "cpu"
    assert "no longer converted" in str(report)
    ane.revert(actor)
    assert {row["device"] for row in report.to_dict()["converted"]} == {"mlx"}
    again = ane.convert(actor, device="cpu")
    assert [c.name for c in again.converted] == [c.name for c in report.converted]


def test_a_failure_leaves_a_shared_layer_converted() -> None:
    actor, critic = actor_and_critic()
    ane.convert(actor, device="cpu", precision="exact")
    critic.out.bias = mx.zeros((7,))
    settings = dict(vars(actor.trunk.layers[0]))
    with pytest.raises(ValueError, match="out has weight"):
        ane.convert(critic, device="emulated")
    assert type(actor.trunk.layers[0]) is ane.nn.ANELinear
    assert vars(actor.trunk.layers[0]) == settings
    assert type(critic.out) is nn.Linear


def test_predicates_get_the_layer_itself() -> None:
    model = Zoo()
    for _ in range(2):  # plain, then converted
        ane.convert(
            model,
            class_predicate=lambda path, module: (
                module is not model.table
                and {"device": "emulated" if module is model.first else "cpu"}
            ),
        )
        assert type(model.table) is nn.Embedding
        assert (model.first.device, model.quantized.device) == ("emulated", "cpu")


def test_subclasses_of_our_layers_are_left_to_their_authors() -> None:
    class Mine(ane.nn.ANELinear):
        def __call__(self, x: mx.array) -> mx.array:
            return -super().__call__(x)

    model = nn.Sequential(Mine(64, 64, device="cpu"), nn.Linear(64, 64))
    report = ane.convert(model, device="cpu")
    assert [c.path for c in report.converted] == ["layers.1"]
    assert "a subclass of nn.Linear" in report.skipped[0].reason
    ane.revert(model)
    assert type(model.layers[0]) is Mine
    assert type(model.layers[0].to_linear()) is nn.Linear
    assert vars(model.layers[0])["_device"] == "cpu"


def test_an_optimizer_and_a_hook_hold_the_layer() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    held, hooks = [model.layers[0]], {id(model.layers[1]): "hook"}
    ane.convert(model, device="cpu")
    assert held[0].device == "cpu"
    assert id(model.layers[1]) in hooks
    model.update_modules({"layers": [{}, nn.Linear(64, 64)]})
    assert type(model.layers[1]) is nn.Linear and model.layers[0] is held[0]
    assert len(ane.convert(model, device="cpu").converted) == 2


@pytest.mark.parametrize("order", ["adapters first", "convert first"])
def test_adapters_of_mlx_lm_wrap_and_give_back_the_layer(order: str) -> None:
    model = tiny_llama(tied=False)
    query = model.model.layers[1].self_attn.q_proj
    if order == "convert first":
        ane.convert(model, device="cpu")
    linear_to_lora_layers(model, 2, LORA)
    ane.convert(model, device="cpu")
    assert model.model.layers[1].self_attn.q_proj.linear is query
    assert type(query) is ane.nn.ANELinear
    remove_lora_layers(model)
    assert model.model.layers[1].self_attn.q_proj is query
    ane.revert(model)
    assert type(query) is nn.Linear


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy])
def test_copies_are_layers_of_their_own(
    clone: Callable[[nn.Module], nn.Module],
) -> None:
    layer = nn.Sequential(nn.Linear(64, 64))
    ane.convert(layer, device="cpu")
    other = clone(layer.layers[0])
    assert type(other) is ane.nn.ANELinear
    ane.revert(layer)
    assert type(other) is ane.nn.ANELinear and other.device == "cpu"
    assert type(layer.layers[0]) is nn.Linear


LOAD = """
import pickle, sys
import mlx.core as mx
model = pickle.load(open(sys.argv[1], "rb"))
assert "mlx_ane" in sys.modules
import mlx_ane as ane
assert type(model.in_dict["a"]) is ane.nn.ANELinear
assert model.again is model.first and model.first.device == "cpu"
x = mx.load(sys.argv[2])["x"]
assert mx.array_equal(model.first(x), mx.load(sys.argv[2])["y"])
ane.revert(model)
assert type(model.table).__module__.startswith("mlx.nn")
assert len(ane.convert(model, device="cpu").converted) == 6
"""


def test_a_pickle_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = Zoo()
    ane.convert(model, device="cpu")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    x = mx.random.normal((40, 64))
    mx.savez(str(tmp_path / "x.npz"), x=x, y=model.first(x))
    run_python(LOAD, str(tmp_path / "model.pickle"), str(tmp_path / "x.npz"))


def test_parameters_and_state_are_those_of_mlx() -> None:
    model = Zoo()
    before = dict(tree_flatten(model.parameters()))
    state = [path for path, _ in tree_flatten(model.state)]
    ane.convert(model, device="cpu")
    after = dict(tree_flatten(model.parameters()))
    assert list(after) == list(before)
    assert all(after[path] is array for path, array in before.items())
    assert [path for path, _ in tree_flatten(model.state)] == state
