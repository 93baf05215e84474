"""verify(): PASS where the model is right, FAIL with the reason where it is not."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tracemalloc
from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten
from processes import run_python
from test_convert import LORA, linear_to_lora_layers, tiny_llama

import mlx_ane as ane
from mlx_ane import _ext
from mlx_ane._watch import watching

# The package's attribute of that name is the function.
verification = importlib.import_module("mlx_ane.verify")


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


# -- the whole model against plain MLX ----------------------------------------------

TOKENS = (mx.arange(48)[None] * 7) % 80


@contextlib.contextmanager
def attention_times(factor: float) -> Iterator[None]:
    """While open, models of mlx-lm attend through something else."""
    theirs = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = lambda *args, **options: (
        factor * theirs(*args, **options)
    )
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = theirs


@contextlib.contextmanager
def mlx_attention() -> Iterator[None]:
    """While open, attention is MLX's, whatever was put in its place."""
    ours = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = THEIRS
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = ours


THEIRS = mx.fast.scaled_dot_product_attention


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 3.0, 1.5])
def test_what_is_in_place_beside_the_layers_is_compared(
    device: str, dtype: mx.Dtype, factor: float
) -> None:
    model = tiny_llama()
    model.set_dtype(dtype)
    ane.convert(model, device=device)
    with attention_times(factor):
        report = ane.verify(model, TOKENS, plain=mlx_attention)
    assert all(layer.reasons == [] for layer in report.layers) or factor != 1.0
    assert report.passed == (factor == 1.0), str(report)
    if factor != 1.0:
        assert any("output error" in reason for reason in report.reasons)
        assert str(report).rstrip().endswith("FAIL")


def test_plain_is_left_before_the_converted_model_runs() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    ane.convert(model, device="cpu")
    kinds, inside = [], []

    @contextlib.contextmanager
    def plain() -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    def loss(model: nn.Module, x: mx.array) -> mx.array:
        kinds.append((bool(inside), type(model.layers[0])))
        return mx.square(model(x)).mean()

    assert ane.verify(model, mx.ones((40, 64)), loss=loss, plain=plain).passed
    assert {k for i, k in kinds if i} == {nn.Linear}
    assert all(issubclass(k, ane.nn.ANELinear) for i, k in kinds if not i)
    assert len(kinds) == 3


@pytest.mark.parametrize(
    ("dtype", "layers"),
    [(mx.bfloat16, 12), (mx.bfloat16, 28), (mx.float16, 12), (mx.float32, 28)],
    ids=str,
)
def test_deep_models_pass(device: str, dtype: mx.Dtype, layers: int) -> None:
    model = tiny_llama(layers=layers)
    model.set_dtype(dtype)
    ane.convert(model, device=device)
    report = ane.verify(model, TOKENS)
    assert report.passed, str(report)
    half = dtype != mx.float32
    assert (report.output_noise > 1e-4) == (half or device != "cpu")
    assert report.output_error <= 2 * report.output_noise + (device != "cpu") * 1e-2 + (
        1e-4
    )


def test_a_wrong_gradient_of_a_deep_half_model_fails(monkeypatch) -> None:
    model = tiny_llama(layers=12)
    model.set_dtype(mx.bfloat16)
    ane.convert(model, device="cpu")
    real, wrong = _ext.linear, "model.layers.3.self_attn.q_proj"

    def linear(x, w, b=None, *, name="", **options):
        if name == wrong:
            w = 0.8 * w + 0.2 * mx.stop_gradient(w)
        return real(x, w, b, name=name, **options)

    monkeypatch.setattr(_ext, "linear", linear)
    report = ane.verify(model, TOKENS)
    failed = {layer.path for layer in report.layers if layer.failed}
    assert failed == {wrong}


def test_gradients_of_what_is_not_converted_are_compared(monkeypatch) -> None:
    model = tiny_llama(tied=False)
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    ane.convert(model, device="cpu")
    real = _ext.linear

    def no_gradient_of_x(x, w, b=None, *, name="", **options):
        if name.endswith("layers.1.self_attn.o_proj.linear"):
            x = mx.stop_gradient(x)
        return real(x, w, b, name=name, **options)

    monkeypatch.setattr(_ext, "linear", no_gradient_of_x)
    report = ane.verify(model, TOKENS)
    assert not report.passed
    assert not any(layer.failed for layer in report.layers)
    assert "gradient of model.layers.1.self_attn.v_proj.lora_b" in str(report)


def test_a_gradient_that_is_zero_but_for_rounding_passes(device: str) -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The softmax does not see the key's bias.
            self.attention = nn.MultiHeadAttention(64, 4, bias=True)

        def __call__(self, x: mx.array) -> mx.array:
            return self.attention(x, x, x)

    model = SelfAttention()
    for projection in model.attention.leaf_modules().values():
        projection.weight = 4.0 * projection.weight
    ane.convert(model, device=device)
    report = ane.verify(model, mx.random.normal((2, 40, 64)))
    assert report.passed, str(report)


@pytest.mark.parametrize("where", ["loss", "gradient", "both sides"])
def test_what_is_not_finite_fails(where: str, monkeypatch) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    ane.convert(model, device="cpu")

    def loss(model: nn.Module, x: mx.array) -> mx.array:
        y = model(x).mean()
        converted = isinstance(model.layers[0], ane.nn.ANELinear)
        if where == "both sides" or (where == "loss" and converted):
            return y * float("nan")
        if where == "gradient" and converted:
            # sqrt has an infinite derivative at 0, which times 0 is NaN.
            return y + mx.sqrt(0.0 * y * y)
        return y

    report = ane.verify(model, mx.ones((40, 64)), loss=loss)
    assert not report.passed
    if where == "gradient":
        assert "gradient error nan" in str(report)
    else:
        assert "the loss is not finite" in report.reasons
    json.dumps(report.to_dict())


def test_layers_placed_elsewhere_neither_pass_nor_fail(engine: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.unused = nn.Linear(64, 64)
    ane.convert(model, device=engine)
    few = ane.verify(model, mx.random.normal((8, 64)))
    verdicts = [layer.verdict for layer in few.layers]
    assert verdicts == ["not on the device (few_rows)"] * 2 + ["not called"]
    assert not any(layer.passed or layer.failed for layer in few.layers)
    assert not few.passed
    assert "PASS" not in str(few)
    assert "no layer ran on its device: FAIL" in str(few)
    many = ane.verify(model, mx.random.normal((40, 64)))
    assert [layer.verdict for layer in many.layers] == ["PASS", "PASS", "not called"]
    assert many.passed
    assert json.loads(json.dumps(many.to_dict()))["layers"][2]["passed"] is False


def test_some_calls_on_the_device_are_enough(engine: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.rarely = nn.Linear(64, 64), nn.Linear(64, 64)

        def __call__(self, x: mx.array) -> mx.array:
            return self.often(x).mean(axis=0) + self.often(self.rarely(x[:4]))[0]

    model = Twice()
    ane.convert(model, device=engine)
    often, rarely = ane.verify(model, mx.random.normal((40, 64))).layers
    assert (often.verdict, often.placed) == ("PASS", {"few_rows": 1})
    assert rarely.verdict == "not on the device (few_rows)"


def test_layers_without_a_name_of_their_own(engine: str) -> None:
    # Made by hand, or copies of one layer: counted apart all the same.
    model = nn.Sequential(
        ane.nn.ANELinear(64, 64, device=engine), ane.nn.ANELinear(64, 64, device="cpu")
    )
    report = ane.verify(model, mx.random.normal((8, 64)))
    assert [layer.verdict for layer in report.layers] == [
        "not on the device (few_rows)",
        "PASS",
    ]
    assert [layer._name for layer in model.layers] == ["", ""]


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "quantised", "lora"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_models_of_other_kinds_pass(device: str, kind: str, dtype: mx.Dtype) -> None:
    layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)]
    if kind == "batch norm":
        layers.insert(1, nn.BatchNorm(64))
    if kind == "dropout":
        layers.insert(1, nn.Dropout(0.3))
    model = nn.Sequential(*layers)
    model.set_dtype(dtype)
    if kind == "quantised":
        nn.quantize(model, group_size=32, bits=4)
    ane.convert(model, device=device)
    if kind == "lora":
        from mlx_lm.tuner.lora import LoRALinear

        model.freeze()
        model.layers[0] = LoRALinear.from_base(model.layers[0], r=4)
    report = ane.verify(model, mx.random.normal((40, 64)).astype(dtype))
    assert report.passed, str(report)
    assert report.output_error > 0.0


# -- memory -------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True])
def test_the_float64_reference_takes_less_than_the_layer(quantized: bool) -> None:
    layer = nn.Linear(512, 8192, bias=False)  # 8 MiB
    layer.set_dtype(mx.bfloat16)
    model = nn.Sequential(layer.to_quantized() if quantized else layer)
    size = 2 * 512 * 8192
    ane.convert(model, device="cpu")
    x = mx.random.normal((40, 512)).astype(mx.bfloat16)
    mx.eval(model.state, model(x))
    check = verification.LayerCheck("layers.0", (8192, 512), "cpu")
    check.layer = model.layers[0]
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    with watching([(check, check.layer)], verification._compare):
        mx.eval(model(x))
    peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - before
    tracemalloc.stop()
    assert check.reasons == [] and 0 < check.forward_error < 8e-3
    assert peak < size


MEMORY = """
import threading
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_ane as ane

PAGE = 4096


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def watch() -> None:
    while watching:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)


n, k = 65536, 512
layer = nn.Linear(1, 1, bias=False)
layer.weight = mx.zeros((n, k), mx.bfloat16) + mx.array(0.01, mx.bfloat16)
model = nn.Sequential(layer)
model.freeze()
x = mx.random.normal((4, k)).astype(mx.bfloat16)
ane.convert(model, device="cpu")
mx.eval(model.state, x, model(x))
watching, before, peak = True, resident(), [0]
thread = threading.Thread(target=watch)
thread.start()
assert ane.verify(model, x).passed
watching = False
thread.join()
size = 2 * n * k
assert peak[0] - before < 1.5 * size, (peak[0] - before) / size
print((peak[0] - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_verify_as_a_whole_takes_less_than_the_layer_and_a_half() -> None:
    run_python(MEMORY)


def test_blocks_find_what_the_whole_finds() -> None:
    # Blocks of rows of x and of the weight that do not divide either.
    model = nn.Sequential(nn.Linear(3000, 101))
    ane.convert(model, device="cpu")
    check = verification.LayerCheck("layers.0", (101, 3000), "cpu")
    check.layer = model.layers[0]
    x = mx.random.normal((77, 3000))
    y = model(x) * 1.001
    verification._compare(check, x, y)
    w, b = (
        np.asarray(a, np.float64) for a in (model.layers[0].weight, check.layer.bias)
    )
    x64 = np.asarray(x, np.float64)
    expected = x64 @ w.T + b
    error = np.linalg.norm(np.asarray(y) - expected) / np.linalg.norm(expected)
    assert check.forward_error == pytest.approx(error, rel=1e-6)
    largest = (np.abs(x64) @ np.abs(w).T).max()
    assert check.margin_bits == pytest.approx(np.log2(32752 / largest))
