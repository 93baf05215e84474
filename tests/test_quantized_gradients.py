"""Gradients of scales and biases of quantised layers: those of plain MLX."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.optimizers as optim
import pytest
from cases import DTYPES, exact, norm_error
from mlx import nn
from mlx.utils import tree_flatten

import mlx_ane as ane

KEYS = ["scales", "biases", "bias"]


def trained(model: nn.Module, keys: list[str] = KEYS) -> nn.Module:
    """The model with scales and biases unfrozen."""
    model.apply_to_modules(
        lambda _, m: m.unfreeze(keys=keys, recurse=False, strict=False)
    )
    return model


def gradients(model: nn.Module, f: Callable[..., mx.array]) -> dict[str, mx.array]:
    return dict(tree_flatten(nn.value_and_grad(model, f)()[1]))


def check(ours: dict[str, mx.array], plain: dict[str, mx.array], bound: float) -> None:
    assert ours.keys() == plain.keys() and ours
    for name, expected in plain.items():
        assert ours[name].dtype == expected.dtype
        assert norm_error(ours[name], exact(expected)) < bound, name


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("group_size", "bits"), [(32, 4), (64, 3), (128, 8)])
def test_a_layer(
    device: str, group_size: int, bits: int, dtype: mx.Dtype, compiled: bool
) -> None:
    plain = nn.Linear(128, 48)
    plain.set_dtype(dtype)
    plain = trained(plain.to_quantized(group_size, bits))
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x = mx.random.normal((2, 20, 128)).astype(dtype)
    d = mx.random.normal((2, 20, 48)).astype(dtype)

    def gradient(layer: nn.Module) -> dict[str, mx.array]:
        f = lambda: (layer(x) * d).sum()  # noqa: E731
        run = lambda: gradients(layer, f)  # noqa: E731
        return mx.compile(run, inputs=[layer.state])() if compiled else run()

    # MLX itself sums in the dtype of x.
    bound = {mx.float32: 1e-5, mx.float16: 3e-3, mx.bfloat16: 2e-2}[dtype]
    check(gradient(layer), gradient(plain), bound)


@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (2, 3, 7, 64)], ids=str)
def test_shapes_of_x(device: str, shape: tuple[int, ...]) -> None:
    plain = trained(nn.Linear(64, 40).to_quantized(32, 4))
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x = mx.random.normal(shape)
    check(
        gradients(layer, lambda: layer(x).sum()),
        # MLX's own gradient refuses a vector.
        gradients(plain, lambda: plain(x.reshape(-1, 64)).sum()),
        1e-5,
    )


def test_mixed_types_of_scales_and_biases(device: str) -> None:
    plain = trained(nn.Linear(64, 40).to_quantized(32, 4))
    plain.scales = plain.scales.astype(mx.bfloat16)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x = mx.random.normal((40, 64)).astype(mx.float16)
    assert norm_error(layer(x), exact(plain(x))) < 3e-3
    check(
        gradients(layer, lambda: layer(x).sum()),
        gradients(plain, lambda: plain(x).sum()),
        1e-2,
    )


def test_a_tied_head(device: str) -> None:
    plain = trained(nn.Embedding(48, 64).to_quantized(32, 4))
    layer = ane.nn.ANEQuantizedEmbedding.from_quantized_embedding(plain, device)
    x, tokens = mx.random.normal((40, 64)), mx.array([1, 5, 5])

    def loss(layer: nn.Module) -> mx.array:
        return (layer.as_linear(x) ** 2).mean() + layer(tokens).sum()

    bound = 1e-5 if device == "cpu" else 3e-3  # as y differs
    check(
        gradients(layer, lambda: loss(layer)),
        gradients(plain, lambda: loss(plain)),
        bound,
    )


def test_only_what_is_asked_is_computed(device: str) -> None:
    plain = nn.Linear(64, 40).to_quantized(32, 4)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x = mx.random.normal((40, 64))

    def products(keys: list[str]) -> tuple[int, int]:
        layer.freeze()
        trained(layer, keys)
        ane.reset_counters()
        mx.eval(gradients(layer, lambda: layer(x).sum()))
        counts = ane.counters()
        return counts["gemm_dx"], counts["gemm_dw"]

    assert products(["bias"]) == (0, 0)
    assert products(["biases"]) == (0, 1)
    assert products(["scales", "biases"]) == (0, 1)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_refused_where_mlx_refuses(device: str, mode: str) -> None:
    plain = trained(nn.Linear(64, 40).to_quantized(mode=mode), ["scales"])
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x = mx.ones((40, 64))
    with pytest.raises(ValueError, match="no gradient wrt scales"):
        gradients(plain, lambda: plain(x).sum())
    with pytest.raises(ValueError, match=f'in mode "{mode}", need mode "affine"'):
        gradients(layer, lambda: layer(x).sum())


def test_the_weight_has_no_gradient(device: str) -> None:
    layer = ane.nn.ANEQuantizedLinear(64, 40, device=device)
    trained(layer, ["weight"])
    with pytest.raises(ValueError, match="need it frozen"):
        gradients(layer, lambda: layer(mx.ones((40, 64))).sum())


def test_forward_mode_of_x(device: str) -> None:
    plain = nn.Linear(64, 40).to_quantized(32, 4)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x, d = mx.random.normal((40, 64)), mx.random.normal((40, 64))
    _, got = mx.jvp(layer, [x], [d])
    _, expected = mx.jvp(plain, [x], [d])
    assert norm_error(got[0], exact(expected[0])) < 1e-5


def test_second_order(device: str) -> None:
    plain = nn.Linear(64, 40).to_quantized(32, 4)
    layer = ane.nn.ANEQuantizedLinear.from_quantized_linear(plain, device)
    x, d = mx.random.normal((40, 64)), mx.random.normal((40, 40))

    def second(layer: nn.Module) -> mx.array:
        def of_x(x: mx.array, scales: mx.array) -> mx.array:
            layer.scales = scales
            return (layer(x) * d).sum()

        kept = layer.scales
        inner = lambda s: (mx.grad(of_x)(x, s) ** 2).sum()  # noqa: E731
        found = mx.grad(inner)(kept)
        layer.scales = kept
        return found

    assert norm_error(second(layer), exact(second(plain))) < 1e-5


@pytest.mark.parametrize("ours", [False, True], ids=["mlx", "ours"])
def test_training_of_scales(device: str, ours: bool) -> None:
    def train(device: str | None) -> tuple[list[float], dict[str, mx.array]]:
        mx.random.seed(3)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        nn.quantize(model, 32, 4)
        if device:
            ane.convert(model, device=device)
        trained(model)
        kind = ane.optimizers.AdamW if ours and device else optim.AdamW
        optimizer = kind(1e-3)
        x, y = mx.random.normal((40, 64)), mx.random.normal((40, 32))
        step = nn.value_and_grad(model, lambda: ((model(x) - y) ** 2).mean())
        losses = []
        for _ in range(6):
            loss, found = step()
            optimizer.update(model, found)
            mx.eval(model.parameters(), optimizer.state)
            losses.append(loss.item())
        return losses, dict(tree_flatten(model.trainable_parameters()))

    plain, expected = train(None)
    losses, got = train(device)
    assert losses == pytest.approx(plain, rel=1e-5 if device == "cpu" else 2e-3)
    assert losses[-1] < 0.97 * losses[0]
    # Adam divides by the size of a gradient, its rounding included.
    check(got, expected, 2e-4 if device == "cpu" else 5e-2)
