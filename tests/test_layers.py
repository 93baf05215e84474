"""ANELinear, ANEQuantizedLinear, ANEEmbedding: the layers of mlx.nn, elsewhere."""

from __future__ import annotations

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import TOLERANCE, exact, norm_error
from mlx.utils import tree_flatten

import mlx_ane as ane


def paths(module: nn.Module) -> list[str]:
    return [path for path, _ in tree_flatten(module.parameters())]


@pytest.mark.parametrize("bias", [False, True])
def test_linear_shares_arrays_and_freezing(device: str, bias: bool) -> None:
    plain = nn.Linear(64, 48, bias=bias)
    plain.freeze(keys="weight")
    plain.eval()
    layer = ane.nn.ANELinear.from_linear(plain, device)
    assert isinstance(layer, nn.Linear)
    assert layer.weight is plain.weight
    assert ("bias" in layer) == bias
    assert paths(layer) == paths(plain)
    assert layer._no_grad == {"weight"} and layer._no_grad is not plain._no_grad
    assert not layer.training
    x = mx.random.normal((40, 64))
    assert norm_error(layer(x), exact(plain(x))) <= TOLERANCE[device]
    back = layer.to_linear()
    assert type(back) is nn.Linear
    assert back.weight is plain.weight
    assert vars(back) == vars(plain)


def test_constructors_are_those_of_mlx(device: str) -> None:
    mx.random.seed(1)
    plain = nn.Linear(8, 4), nn.Embedding(5, 8), nn.QuantizedLinear(64, 32)
    mx.random.seed(1)
    ours = (
        ane.nn.ANELinear(8, 4, device=device),
        ane.nn.ANEEmbedding(5, 8, device=device),
        ane.nn.ANEQuantizedLinear(64, 32, device=device),
    )
    for a, b in zip(plain, ours, strict=True):
        assert paths(a) == paths(b)
        assert a._no_grad == b._no_grad
        for (_, x), (_, y) in zip(
            tree_flatten(a.parameters()), tree_flatten(b.parameters()), strict=True
        ):
            assert mx.array_equal(x, y)


def test_frozen_is_read_at_the_call(engine: str) -> None:
    layer = ane.nn.ANELinear(64, 48, device=engine)
    x = mx.random.normal((40, 64))
    mx.eval(layer(x))
    assert ane.counters()["weight_store_misses"] == 0
    layer.freeze()
    mx.eval(layer(x))
    mx.eval(layer(x))
    assert ane.counters()["weight_store_misses"] == 1
    assert ane.counters()["weight_store_hits"] == 1
    layer.unfreeze()
    mx.eval(layer(x))
    assert ane.counters()["weight_store_hits"] == 1


#: group_size, bits and mode of each quantisation that MLX has.
QUANTIZATIONS = [(64, bits, "affine") for bits in (2, 3, 4, 5, 6, 8)] + [
    (32, 4, "affine"),
    (128, 4, "affine"),
    (32, 4, "mxfp4"),
    (32, 8, "mxfp8"),
    (16, 4, "nvfp4"),
]


def dequantized(layer: nn.Module) -> mx.array:
    return mx.dequantize(
        layer.weight,
        layer.scales,
        layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


@pytest.mark.parametrize(("group_size", "bits", "mode"), QUANTIZATIONS, ids=str)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_quantized_linear(
    device: str, group_size: int, bits: int, mode: str, dtype: mx.Dtype
) -> None:
    plain = nn.Linear(128, 96)
    plain.set_dtype(dtype)
    quantized = plain.to_quantized(group_size, bits, mode)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(quantized, device)
    assert isinstance(layer, nn.QuantizedLinear)
    assert paths(layer) == paths(quantized)
    assert layer.trainable_parameters() == quantized.trainable_parameters()
    x = mx.random.normal((40, 128)).astype(dtype)
    weight = dequantized(quantized)
    expected = exact(x) @ exact(weight).T + exact(quantized.bias)
    y = layer(x)
    rounding = {mx.float32: 0.0, mx.float16: 1e-3, mx.bfloat16: 8e-3}[dtype]
    assert y.dtype == quantized(x).dtype
    assert norm_error(y, expected) <= TOLERANCE[device] + rounding
    dy = mx.random.normal((40, 96)).astype(dtype)
    _, (dx,) = mx.vjp(layer, [x], [dy])
    assert dx.dtype == dtype
    assert norm_error(dx, exact(dy) @ exact(weight)) <= 1e-5 + rounding
    back = layer.to_quantized_linear()
    assert type(back) is nn.QuantizedLinear
    assert back.scales is quantized.scales


def test_quantized_linear_runs_no_dw_gemm(device: str) -> None:
    layer = ane.nn.ANEQuantizedLinear(128, 96, device=device)
    x = mx.random.normal((40, 128))
    mx.eval(mx.grad(lambda x: mx.sum(mx.square(layer(x))))(x))
    assert ane.counters()["gemm_dw"] == 0
    assert ane.counters()["gemm_dx"] >= 1


def test_to_quantized_keeps_the_device(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    ane.convert(model, device=device)
    model.table = ane.nn.ANEEmbedding(8, 64, device=device)
    nn.quantize(model, group_size=32, bits=8)
    assert type(model.table) is ane.nn.ANEQuantizedEmbedding
    layer = model.layers[0]
    assert type(layer) is ane.nn.ANEQuantizedLinear
    assert layer.device == device
    assert layer._name == "layers.0"
    x = mx.random.normal((40, 64))
    ane_y = model(x)
    ane.revert(model)
    assert type(model.layers[0]) is nn.QuantizedLinear
    assert norm_error(ane_y, exact(model(x))) <= 2 * TOLERANCE[device] + 1e-5


def test_quantize_input_gives_mlx_layer() -> None:
    layer = ane.nn.ANELinear(64, 32, bias=False)
    quantized = layer.to_quantized(mode="nvfp4", quantize_input=True)
    assert type(quantized) is nn.QQLinear


def test_embedding_runs_as_linear_only(device: str) -> None:
    plain = nn.Embedding(96, 64)
    layer = ane.nn.ANEEmbedding.from_embedding(plain, device)
    tokens = mx.array([[3, 1], [2, 95]])
    assert mx.array_equal(layer(tokens), plain(tokens))
    assert ane.counters()["linear_calls"] == 0
    x = mx.random.normal((40, 64))
    assert (
        norm_error(layer.as_linear(x), exact(plain.as_linear(x))) <= (TOLERANCE[device])
    )
    assert ane.counters()["linear_calls"] == 1
    assert type(layer.to_embedding()) is nn.Embedding
    assert layer.to_embedding().weight is plain.weight


def test_quantized_embedding(device: str) -> None:
    quantized = nn.Embedding(96, 64).to_quantized(group_size=32, bits=8)
    layer = ane.nn.ANEQuantizedEmbedding.from_quantized_embedding(quantized, device)
    tokens = mx.array([3, 1, 95])
    assert mx.array_equal(layer(tokens), quantized(tokens))
    x = mx.random.normal((40, 64))
    expected = exact(x) @ exact(dequantized(quantized)).T
    assert norm_error(layer.as_linear(x), expected) <= TOLERANCE[device]
    assert ane.counters()["linear_calls"] == 1
    back = layer.to_quantized_embedding()
    assert type(back) is nn.QuantizedEmbedding
    assert back.scales is quantized.scales


def test_quantized_weight_is_staged_once(engine: str) -> None:
    layer = ane.nn.ANEQuantizedLinear(128, 96, device=engine)
    x = mx.random.normal((40, 128))
    for _ in range(3):
        mx.eval(layer(x))
    counts = ane.counters()
    assert (counts["weight_store_misses"], counts["weight_store_hits"]) == (1, 2)
    compiled = mx.compile(layer.__call__, inputs=[layer.state])
    for _ in range(2):  # new arrays are seen, compiled or not
        expected = exact(x) @ exact(dequantized(layer)).T
        assert norm_error(layer(x), expected) <= TOLERANCE[engine]
        assert norm_error(compiled(x), expected) <= TOLERANCE[engine]
        new = nn.Linear(128, 96, bias=False).to_quantized()
        layer.update(new.parameters(), strict=False)


def test_tied_gradients_add_up(device: str) -> None:
    layer = ane.nn.ANEEmbedding(96, 64, device=device)
    tokens = mx.arange(40)

    def loss(weight: mx.array, embedding: nn.Embedding) -> mx.array:
        embedding.weight = weight
        return mx.mean(embedding.as_linear(embedding(tokens)))

    weight = layer.weight
    got = mx.grad(lambda w: loss(w, layer))(weight)
    expected = mx.grad(lambda w: loss(w, layer.to_embedding()))(weight)
    assert norm_error(got, exact(expected)) <= 1e-5


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies(device: str, clone) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64))
    model.embedding = nn.Embedding(7, 64)
    model.quantized = nn.Linear(64, 64).to_quantized()
    model.layers[0].freeze()
    ane.convert(model, device=device)
    twin = clone(model)
    assert type(twin.layers[0]) is ane.nn.ANELinear
    assert type(twin.embedding) is ane.nn.ANEEmbedding
    assert type(twin.quantized) is ane.nn.ANEQuantizedLinear
    assert twin.layers[0]._no_grad == {"weight", "bias"}
    assert twin.layers[0].device == device
    x = mx.random.normal((40, 64))
    assert mx.array_equal(twin(x), model(x))
    twin.layers[0].weight = mx.zeros((48, 64))
    assert not mx.array_equal(twin(x), model(x))


def test_repr_names_the_device() -> None:
    assert repr(ane.nn.ANELinear(8, 4, device="emulated")) == (
        "ANELinear(input_dims=8, output_dims=4, bias=True, device=emulated)"
    )
    ane.set_default_device("cpu")
    assert "device=cpu" in repr(ane.nn.ANEEmbedding(8, 4))


def test_layer_follows_the_default_device() -> None:
    layer = ane.nn.ANELinear(64, 48)
    x = mx.random.normal((40, 64))
    for device in ("cpu", "emulated"):
        ane.set_default_device(device)
        assert layer.device == device
        ane.reset_counters()
        mx.eval(layer(x))
        assert (ane.counters()["device_calls"] > 0) == (device == "emulated")


def test_names_reach_the_counters(device: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64))
    report = ane.convert(model, device=device)
    for _ in range(3):
        mx.eval(model(mx.random.normal((40, 64))))
    live = report.placement()
    assert {path: row["calls"] for path, row in live.items()} == {
        "layers.0": 3,
        "layers.1": 3,
    }
