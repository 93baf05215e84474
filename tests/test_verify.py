"""verify(): PASS where the model is right, FAIL with the reason where it is not."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten
from test_convert import LORA, linear_to_lora_layers, tiny_llama

import mlx_ane as ane
from mlx_ane import _ext


def test_a_model_passes(device: str) -> None:
    model = tiny_llama()
    tokens = mx.arange(48)[None] % 80
    ane.convert(model, device=device)
    before = dict(tree_flatten(model.parameters()))
    kinds = [type(m) for m in model.modules()]
    report = ane.verify(model, tokens)
    assert report.passed, str(report)
    assert len(report.layers) == 15
    assert all(layer.calls == 1 for layer in report.layers)
    assert all(layer.gradient_error is not None for layer in report.layers)
    limit = 1e-5 if device == "cpu" else 2e-3
    assert max(layer.forward_error for layer in report.layers) <= limit
    assert (min(x.forward_error for x in report.layers) > 1e-5) == (device != "cpu")
    assert report.gradient_error <= (1e-4 if device == "cpu" else 4e-2)
    assert abs(report.loss / report.plain_loss - 1) <= 1e-2
    # The model is left as it was, to the array.
    assert [type(m) for m in model.modules()] == kinds
    after = dict(tree_flatten(model.parameters()))
    assert all(before[key] is after[key] for key in before)
    assert str(report).rstrip().endswith("PASS")
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_loss_function_and_lora(device: str) -> None:
    model = tiny_llama(tied=False)
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    ane.convert(model, device=device)
    tokens = mx.arange(48)[None] % 80

    def loss(model: nn.Module, tokens: mx.array) -> tuple[mx.array, int]:
        logits = model(tokens[:, :-1])
        losses = nn.losses.cross_entropy(logits, tokens[:, 1:])
        return mx.mean(losses), losses.size

    report = ane.verify(model, tokens, loss=loss)
    assert report.passed, str(report)
    assert all(layer.gradient_error is None for layer in report.layers)
    assert report.gradient_error is not None
    expected = loss(model, tokens)[0].item()
    assert report.loss == pytest.approx(expected, rel=1e-6)


def test_everything_frozen(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    model.freeze()
    ane.convert(model, device=device)
    report = ane.verify(model, mx.random.normal((40, 64)))
    assert report.passed
    assert report.gradient_error is None
    assert "none (all frozen)" in str(report)


def test_a_wrong_forward_fails_with_the_reason(device: str, monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    ane.convert(model, device=device)
    real = _ext.linear

    def off_by_a_percent(x, w, b=None, *, name="", **options):
        y = real(x, w, b, name=name, **options)
        return y * 1.01 if name == "layers.1" else y

    monkeypatch.setattr(_ext, "linear", off_by_a_percent)
    report = ane.verify(model, mx.random.normal((40, 64)))
    assert not report.passed
    good, bad = report.layers
    assert good.passed and not bad.passed
    assert bad.forward_error == pytest.approx(0.01, rel=0.2)
    assert "forward error 1.0e-02, need" in bad.reasons[0]
    assert "FAIL: forward error" in str(report)


def test_a_wrong_gradient_fails_with_the_reason(monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    ane.convert(model, device="cpu")
    real = _ext.linear

    def half_the_weight_gradient(x, w, b=None, **options):
        w = 0.5 * w + 0.5 * mx.stop_gradient(w)
        return real(x, w, b, **options)

    monkeypatch.setattr(_ext, "linear", half_the_weight_gradient)
    report = ane.verify(model, mx.random.normal((40, 64)))
    assert [layer.gradient_error for layer in report.layers] == pytest.approx([0.5] * 2)
    assert all("gradient error" in layer.reasons[0] for layer in report.layers)
    assert report.layers[0].forward_error <= 1e-5


def test_margin_and_splits() -> None:
    model = nn.Sequential(nn.Linear(3000, 32, bias=False))
    model.layers[0].weight = mx.full((32, 3000), 2.0)
    ane.convert(model, device="emulated")
    check = ane.verify(model, mx.full((40, 3000), 4.0)).layers[0]
    assert check.k_splits == 3
    assert check.margin_bits == pytest.approx(np.log2(32752 / 24000), abs=1e-3)
    assert ane.verify(model, mx.full((40, 3000), 64.0)).layers[0].margin_bits < 0


def test_scales_are_those_of_packing(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    model.layers[0].weight = mx.full((64, 64), 1 / 8)  # rows of norm 1
    ane.convert(model, device=device)
    x = mx.ones((40, 64)) * mx.where(mx.arange(40) < 7, 4.0, 1.0)[:, None]
    (check,) = ane.verify(model, x).layers
    if device == "cpu":
        assert (check.x_scales, check.weight_scales, check.k_splits) == (None, None, 1)
        return
    # Norms of 32 and 8 become 2^7, as do norms of 1.
    assert (check.x_scales, check.weight_scales) == ((2, 4), (7, 7))
    report = str(ane.verify(model, x))
    assert "x 2..4, W 7" in report
    few = ane.verify(model, x[:8]).layers[0]
    assert few.x_scales is None  # placed on the BLAS


def test_dropout_draws_the_same_mask_and_the_generator_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64))
    ane.convert(model, device="cpu")
    x = mx.random.normal((40, 64))
    state = mx.array(mx.random.state[0])
    report = ane.verify(model, x)
    assert report.output_error <= 1e-5
    assert mx.array_equal(mx.random.state[0], state)


def test_inputs_that_are_not_finite_are_named(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    ane.convert(model, device=device)
    report = ane.verify(model, mx.full((40, 64), float("nan")))
    assert report.layers[0].reasons[0] == "x or weight is not finite"


def test_an_error_leaves_the_model_as_it_was(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    ane.convert(model, device=device)

    def loss(model: nn.Module, x: mx.array) -> mx.array:
        if type(model.layers[0]) is nn.Linear:
            raise KeyError
        return mx.sum(model(x))

    with pytest.raises(KeyError):
        ane.verify(model, mx.random.normal((40, 64)), loss=loss)
    assert type(model.layers[0]) is ane.nn.ANELinear


def test_plain_model() -> None:
    with pytest.raises(ValueError, match="has no converted layer; convert it first"):
        ane.verify(nn.Sequential(nn.Linear(4, 4)), mx.ones((2, 4)))


def test_quantized_layer(device: str) -> None:
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64))
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda p, m: "0" in p)
    ane.convert(model, device=device)
    report = ane.verify(model, mx.random.normal((40, 128)))
    assert report.passed, str(report)
    assert report.layers[0].shape == (64, 128)
    assert norm_error(model(mx.ones((40, 128))), exact(model(mx.ones((40, 128))))) == 0
