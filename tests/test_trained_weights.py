"""Weights that our optimizers train are packed by the update, and by nothing else."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from cases import exact, norm_error
from mlx.utils import tree_flatten, tree_map

import mlx_ane as ane
from mlx_ane import _ext

GRANULARITIES = ["layer", "block"]
X = (2, 40, 64)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.up = nn.Linear(64, 96)
        self.down = nn.Linear(96, 64)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.down(nn.gelu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [MLP() for _ in range(2)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def batch(number: int) -> mx.array:
    return mx.random.normal(X, key=mx.random.key(number))


class Training:
    """A converted model, its optimizer, and the steps of both."""

    def __init__(
        self,
        device: str | None,
        granularity: str = "layer",
        dtype: mx.Dtype = mx.float32,
        kind: Any = ane.optimizers.AdamW,
        rate: float = 1e-2,
    ) -> None:
        mx.random.seed(0)
        self.model = Stack()
        self.model.set_dtype(dtype)
        if device:
            ane.convert(self.model, device=device, granularity=granularity)
        self.optimizer = kind(rate)
        self.optimizer.init(self.model.trainable_parameters())
        self.state = [self.model.state, self.optimizer.state]
        self.number = 0
        mx.eval(self.state)
        self.gradients = nn.value_and_grad(
            self.model, lambda x: mx.mean(mx.square(self.model(x) - x))
        )

    def lazy_step(self) -> mx.array:
        x = batch(self.number).astype(self.model.layers[0].up.weight.dtype)
        self.number += 1
        loss, gradients = self.gradients(x)
        self.optimizer.update(self.model, gradients)
        return loss

    def step(self) -> None:
        loss = self.lazy_step()
        mx.eval(loss, self.model.parameters(), self.optimizer.state)

    def weights(self) -> dict[str, mx.array]:
        return dict(tree_flatten(self.model.parameters()))


def equal(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]) for k in a)


def plain(training: Training) -> nn.Module:
    """MLX's own model of the same weights."""
    model = Stack()
    model.update(tree_map(lambda a: mx.array(exact(a)), training.model.parameters()))
    return model


def check(training: Training) -> None:
    x = batch(1000).astype(training.model.layers[0].up.weight.dtype)
    expected = exact(plain(training)(x.astype(mx.float32)))
    tolerance = 2e-3 if x.dtype == mx.float32 else 2e-2
    assert norm_error(training.model(x), expected) <= tolerance


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_step_packs_no_weight(engine: str, granularity: str, dtype: mx.Dtype) -> None:
    training = Training(engine, granularity, dtype)
    for _ in range(3):
        training.step()
    staged = _ext.cache_bytes()
    mx.synchronize()
    ane.reset_counters()
    for _ in range(3):
        training.step()
    counts = ane.counters()
    assert counts["weights_packed_bytes"] == counts["weights_staged_bytes"] == 0
    assert counts["weight_store_misses"] == 0
    elements = sum(layer.up.weight.size for layer in training.model.layers) * 2
    assert counts["weights_updated_bytes"] >= 3 * 2 * elements
    assert counts["adam_allocated"] == 0
    assert _ext.cache_bytes() == staged > 0
    check(training)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", [ane.optimizers.Adam, ane.optimizers.AdamW])
def test_training_is_bit_equal_to_packing_every_weight(
    engine: str, granularity: str, dtype: mx.Dtype, kind: Any
) -> None:
    written, packed = (Training(engine, granularity, dtype, kind) for _ in range(2))
    for _ in range(4):
        written.step()
        packed.step()
        ane.clear_cache()
    assert equal(written.weights(), packed.weights())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_compiled_steps(engine: str, granularity: str) -> None:
    training, eager = (Training(engine, granularity) for _ in range(2))
    step = mx.compile(
        lambda x: training.optimizer.update(training.model, training.gradients(x)[1]),
        inputs=training.state,
        outputs=training.state,
    )
    for number in range(5):
        if number == 3:
            ane.reset_counters()
        step(batch(number))
        mx.eval(training.state)
    counts = ane.counters()
    assert counts["weights_packed_bytes"] == counts["weights_staged_bytes"] == 0
    for _ in range(5):
        eager.step()
    assert (
        norm_error(
            training.model.layers[0].up.weight, exact(eager.model.layers[0].up.weight)
        )
        <= 1e-5
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_five_steps_in_one_eval(engine: str, granularity: str) -> None:
    one, five = (Training(engine, granularity) for _ in range(2))
    for _ in range(5):
        one.step()
    for _ in range(2):  # the second time with weights that are in surfaces
        five.number = one.number - 5
        losses = [five.lazy_step() for _ in range(5)]
        mx.eval(losses, five.model.parameters(), five.optimizer.state)
        assert equal(one.weights(), five.weights())
        for _ in range(5):
            one.step()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_an_unevaluated_forward_of_the_old_weights(
    engine: str, granularity: str
) -> None:
    training = Training(engine, granularity)
    for _ in range(3):
        training.step()
    x = batch(7)
    expected = exact(training.model(x))
    old = training.model(x)  # lazy: keeps the old weights
    training.step()
    training.step()
    assert np.array_equal(exact(old), expected)
    assert norm_error(training.model(x), expected) > 1e-3
    check(training)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies_that_are_held(engine: str, granularity: str) -> None:
    """An average of the weights, lazy or not, and the old arrays themselves."""
    free, held = (Training(engine, granularity) for _ in range(2))
    average = held.model.parameters()
    expected = {k: exact(v) for k, v in held.weights().items()}
    old = []
    for number in range(5):
        free.step()
        held.step()
        new = held.model.parameters()
        average = tree_map(lambda a, p: 0.5 * a + 0.5 * p, average, new)
        if number % 2:
            mx.eval(average)
        expected = {
            k: 0.5 * v + 0.5 * exact(held.weights()[k]) for k, v in expected.items()
        }
        old.append((new, {k: exact(v) for k, v in held.weights().items()}))
    assert equal(free.weights(), held.weights())
    for name, value in tree_flatten(average):
        assert norm_error(value, expected[name]) <= 1e-6, name
    for arrays, values in old:
        for name, value in tree_flatten(arrays):
            assert np.array_equal(exact(value), values[name]), name
    held.model.update(old[1][0])  # back to weights that were held
    check(held)
    del old
    held.step()
    check(held)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_loaded_weights(engine: str, granularity: str) -> None:
    training = Training(engine, granularity)
    for _ in range(3):
        training.step()
    training.model.load_weights(
        [(name, value * -2) for name, value in training.weights().items()]
    )
    check(training)
    for _ in range(3):
        training.step()
        check(training)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_skipped_step_leaves_the_surfaces(granularity: str) -> None:
    training = Training("emulated", granularity)
    for _ in range(3):
        training.step()
    before = {name: exact(value) for name, value in training.weights().items()}
    x = batch(7)
    expected = exact(training.model(x))
    _ext.set_fallback("error")
    with ane.emulated.faults("evaluate_false:count=1"), pytest.raises(RuntimeError):
        training.step()
    for name, value in training.weights().items():
        assert np.array_equal(exact(value), before[name]), name
    ane.restore_devices()
    ane.reset_counters()
    assert np.array_equal(exact(training.model(x)), expected)
    counts = ane.counters()
    assert counts["device_calls"] > 0
    assert counts["weights_packed_bytes"] == counts["weights_staged_bytes"] == 0
    training.step()
    check(training)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weights_beyond_the_range_of_fp16(engine: str, granularity: str) -> None:
    training = Training(engine, granularity)
    for _ in range(3):
        training.step()
    training.optimizer.learning_rate = 1e5
    training.step()
    assert mx.abs(training.model.layers[0].up.weight).max() > 65504
    ane.reset_counters()
    written = exact(training.model(batch(7)))
    # Rows of layers have a power of two each; ports of blocks have none.
    placed = ane.counters()["placed_out_of_range"]
    assert (placed > 0) == (granularity == "block")
    ane.clear_cache()
    assert np.array_equal(written, exact(training.model(batch(7))))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_another_optimizer_packs_per_call(engine: str, granularity: str) -> None:
    training = Training(engine, granularity, kind=optim.AdamW)
    for _ in range(4):
        training.step()
    counts = ane.counters()
    assert counts["weights_updated_bytes"] == counts["weights_staged_bytes"] == 0
    assert _ext.cache_bytes() == 0
    check(training)


def test_a_parameter_that_is_transposed_or_shared(engine: str) -> None:
    """One array is the weight of two layers, one of them through its transpose."""
    mx.random.seed(0)
    w = mx.random.normal((64, 64))
    optimizer = ane.optimizers.AdamW(1e-2)
    x = mx.random.normal((40, 64))

    def forward(w: mx.array, device: str) -> mx.array:
        y = ane.linear(x, w, device=device)
        return ane.linear(ane.linear(y, w.T, device=device), w[:32], device=device)

    tree, reference = {"w": w}, {"w": w}
    other = ane.optimizers.AdamW(1e-2)
    for _ in range(5):
        for device, parameters, update in (
            (engine, tree, optimizer),
            ("cpu", reference, other),
        ):
            gradient = mx.grad(lambda w: (forward(w, "cpu") ** 2).mean())(
                parameters["w"]
            )
            mx.eval(forward(parameters["w"], device), gradient)
            parameters.update(update.apply_gradients({"w": gradient}, parameters))
            del gradient
            mx.eval(parameters, update.state)
        expected = exact(forward(reference["w"], "cpu"))
        assert norm_error(forward(tree["w"], engine), expected) <= 2e-3
    assert ane.counters()["weights_updated_bytes"] > 0
