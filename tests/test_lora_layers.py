"""mlx-lm's LoRA layers around ours: made by to_lora, changed by convert."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import (
    linear_to_lora_layers,
    load_adapters,
    remove_lora_layers,
)
from processes import run_python
from test_convert import LORA, tiny_llama

import mlx_ane as ane
from mlx_ane.lora.layers import ANELoRALinear

TOKENS = mx.arange(48)[None] % 80
TOLERANCE = {"cpu": 1e-5, "emulated": 1e-2, "ane": 1e-2}
ORDERS = ["convert first", "LoRA first"]


def weights_of(quantized: bool) -> nn.Module:
    """The same frozen model at each call."""
    mx.random.seed(1)
    model = tiny_llama(tied=False)
    if quantized:
        nn.quantize(model, group_size=32, bits=8)
    model.freeze()
    mx.eval(model.parameters())
    return model


def adapted(quantized: bool, order: str, device: str | None = None) -> nn.Module:
    """The model with adapters whose products are not zero; plain without a device."""
    model = weights_of(quantized)
    if device and order == "convert first":
        ane.convert(model, device=device)
    linear_to_lora_layers(model, 2, LORA)
    if device and order == "LoRA first":
        ane.convert(model, device=device)
    model.update(tree_map(trained, model.trainable_parameters()))
    return model


def trained(array: mx.array) -> mx.array:
    """Adapters after some training, as far as a test can tell."""
    ramp = mx.arange(array.size, dtype=mx.float32).reshape(array.shape)
    return array + 0.02 * mx.sin(ramp)


def arrays(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_values_and_gradients_are_those_of_mlx_lm(
    device: str, order: str, quantized: bool
) -> None:
    def run(model: nn.Module) -> tuple[mx.array, dict[str, mx.array]]:
        def loss(model: nn.Module) -> mx.array:
            return mx.square(model(TOKENS)).mean()

        gradients = nn.value_and_grad(model, loss)(model)[1]
        return model(TOKENS), dict(tree_flatten(gradients))

    plain, model = adapted(quantized, order), adapted(quantized, order, device)
    layer = model.layers[1].mlp.down_proj
    assert type(layer) is ANELoRALinear and isinstance(layer, LoRALinear)
    assert type(layer.linear).__module__ == "mlx_ane.nn"
    before = ane.counters()["placed_device_cpu"]
    (y, gradients), (wanted, all_wanted) = run(model), run(plain)
    assert norm_error(y, exact(wanted)) <= TOLERANCE[device]
    assert gradients.keys() == all_wanted.keys()
    for path, gradient in gradients.items():
        limit = 5 * TOLERANCE[device]
        assert norm_error(gradient, exact(all_wanted[path])) <= limit, path
    placed = ane.counters()["placed_device_cpu"] - before
    # Two passes of two products in 14 layers; on the CPU the base and the head too.
    assert placed == 2 * (2 * 14 + (15 if device == "cpu" else 0))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_adapters_go_both_ways(order: str, quantized: bool, tmp_path: Path) -> None:
    model = adapted(quantized, order, "cpu")
    plain = adapted(quantized, order)
    kept = [dict(tree_flatten(m.trainable_parameters())) for m in (model, plain)]
    assert kept[0].keys() == kept[1].keys()  # paths and first values are mlx-lm's
    assert all(mx.array_equal(kept[0][path], kept[1][path]) for path in kept[0])
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), kept[0])
    config = {"num_layers": 2, "lora_parameters": LORA}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expected = exact(plain(TOKENS))
    for loaded in (weights_of(quantized), weights_of(quantized)):
        if order == "convert first":  # and in plain mlx-lm otherwise
            ane.convert(loaded, device="cpu")
        load_adapters(loaded, str(tmp_path))
        assert norm_error(loaded(TOKENS), expected) <= 1e-5


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_fuse_and_remove(order: str, quantized: bool) -> None:
    model, plain = adapted(quantized, order, "cpu"), adapted(quantized, order)
    ours, theirs = (m.layers[0].self_attn.q_proj for m in (model, plain))
    for dequantize in (False, True):
        fused, expected = (layer.fuse(dequantize) for layer in (ours, theirs))
        assert type(fused) is type(expected)
        assert arrays(fused).keys() == arrays(expected).keys()
        for path, array in arrays(fused).items():
            assert mx.array_equal(array, arrays(expected)[path])
    base = ours.linear
    remove_lora_layers(model)
    assert model.layers[0].self_attn.q_proj is base
    assert not [m for m in model.modules() if isinstance(m, LoRALinear)]
    wanted = exact(weights_of(quantized)(TOKENS))
    assert norm_error(model(TOKENS), wanted) <= 1e-5


def test_to_lora_has_the_arguments_of_from_base() -> None:
    plain = nn.Linear(64, 32)
    layer = ane.nn.ANELinear.from_linear(plain, "cpu")
    mx.random.seed(3)
    made = layer.to_lora(r=5, dropout=0.25, scale=3.0)
    mx.random.seed(3)
    expected = LoRALinear.from_base(plain, r=5, dropout=0.25, scale=3.0)
    assert made.linear is layer
    assert (made.scale, repr(made.dropout)) == (3.0, repr(expected.dropout))
    assert mx.array_equal(made.lora_a, expected.lora_a)
    assert mx.array_equal(made.lora_b, expected.lora_b)
    default = layer.to_lora()
    assert (default.lora_a.shape, default.scale) == ((64, 8), 20.0)


class Louder(LoRALinear):
    def __call__(self, x: mx.array) -> mx.array:
        return 2.0 * super().__call__(x)


def test_only_their_class_around_a_converted_layer() -> None:
    model = nn.Sequential(
        LoRALinear.from_base(nn.Linear(64, 64)),
        LoRALinear.from_base(nn.Linear(64, 64)),
        Louder(64, 64),
        LoRAEmbedding.from_base(nn.Embedding(10, 64)),
    )
    kinds = [type(layer) for layer in model.layers]
    theirs = vars(LoRALinear).copy()
    layers = list(model.layers)

    def classes(**options: Any) -> list[type]:
        ane.convert(model, device="cpu", **options)
        return [type(layer) for layer in model.layers]

    not_first = {"class_predicate": lambda path, module: path != "layers.0.linear"}
    assert classes() == [ANELoRALinear, ANELoRALinear, *kinds[2:]]
    assert classes(**not_first) == [LoRALinear, ANELoRALinear, *kinds[2:]]
    assert type(model.layers[3].embedding) is ane.nn.ANEEmbedding
    ane.revert(model)
    assert [type(layer) for layer in model.layers] == kinds
    assert all(a is b for a, b in zip(layers, model.layers, strict=True))
    assert vars(LoRALinear) == theirs


def test_where_mlx_has_a_gpu_it_multiplies(monkeypatch) -> None:
    layer = ane.nn.ANELinear(64, 64, device="cpu").to_lora()
    x = mx.random.normal((40, 64))
    expected = exact(layer(x))
    ane.reset_counters()
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    y = layer(x)
    monkeypatch.undo()
    assert norm_error(y, expected) <= 1e-5
    assert ane.counters()["linear_calls"] == 1  # the base alone


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_of_the_same_class(clone, device: str) -> None:
    model = adapted(True, "LoRA first", device)
    copied = clone(model)
    assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    assert mx.array_equal(copied(TOKENS), model(TOKENS))
    ane.revert(copied)
    assert type(copied.layers[0].self_attn.q_proj) is LoRALinear
    assert type(model.layers[0].self_attn.q_proj) is ANELoRALinear


LOAD = """
import pickle, sys
import mlx.core as mx
model = pickle.load(open(sys.argv[1], "rb"))
mx.savez(sys.argv[2], y=model(mx.arange(48)[None] % 80))
"""


def test_a_pickle_loads_in_a_fresh_process(tmp_path: Path) -> None:
    model = adapted(False, "convert first", "cpu")
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    run_python(LOAD, str(tmp_path / "model.pickle"), str(tmp_path / "y.npz"))
    got = mx.load(str(tmp_path / "y.npz"))["y"]
    assert mx.array_equal(got, model(TOKENS))


def test_mlx_lm_is_imported_by_nobody_else() -> None:
    run_python(
        """
        import sys
        import mlx.nn as nn
        import mlx_ane as ane
        model = nn.Sequential(nn.Linear(8, 8), nn.MultiHeadAttention(8, 2))
        ane.convert(model, device="cpu", attention="fused")
        assert not [name for name in sys.modules if name.startswith("mlx_lm")]
        """
    )


class OneBlock(nn.Module):
    """A tiny model, as C++ compilers are slow."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.layers = [nn.Linear(8, 8)]
        self.head = nn.Linear(8, 16)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.head(self.layers[0](self.table(tokens)))


@pytest.mark.parametrize("order", ORDERS)
def test_mlx_lms_compiled_trainer(order: str, tmp_path: Path) -> None:
    data = [(list(range(1, 12)), 0)] * 4

    def run(device: str | None) -> tuple[list[float], dict[str, mx.array]]:
        mx.random.seed(0)
        np.random.seed(0)
        model = OneBlock()
        model.freeze()
        lora = {**LORA, "keys": ["layers.0"]}
        if device and order == "convert first":
            ane.convert(model, device=device)
        linear_to_lora_layers(model, 0, lora)
        if device and order == "LoRA first":
            ane.convert(model, device=device)
        losses: list[float] = []

        class Losses:
            def on_train_loss_report(self, info: dict[str, Any]) -> None:
                losses.append(info["train_loss"])

        train(
            model,
            ane.optimizers.Adam(0.1),
            data,
            args=TrainingArgs(
                batch_size=2,
                iters=3,
                steps_per_report=1,
                steps_per_save=100,
                adapter_file=str(tmp_path / "a.safetensors"),
            ),
            training_callback=Losses(),
        )
        return losses, mx.load(str(tmp_path / "a.safetensors"))

    (losses, kept), (theirs, expected) = run("cpu"), run(None)
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(theirs, rel=1e-5)
    assert kept.keys() == expected.keys()
    for path, array in kept.items():
        assert norm_error(array, exact(expected[path])) <= 1e-4, path
