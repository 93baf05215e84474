"""Staged weights: always the right numbers, flat memory, within the budget."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from cases import DTYPES, exact, norm_error
from mlx.utils import tree_map

import mlx_ane as ane
from mlx_ane import _ext

X = (40, 96)


def frozen_layer(engine: str, dtype: mx.Dtype = mx.float32) -> ane.nn.ANELinear:
    layer = ane.nn.ANELinear(96, 64, bias=False, device=engine)
    layer.weight = mx.random.normal((64, 96)).astype(dtype)
    mx.eval(layer.weight)
    layer.freeze()
    return layer


def check(layer: nn.Linear, x: mx.array, tolerance: float = 2e-3) -> None:
    assert norm_error(layer(x), exact(x) @ exact(layer.weight).T) <= tolerance


def store() -> tuple[int, int]:
    counts = ane.counters()
    return counts["weight_store_hits"], counts["weight_store_misses"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_frozen_weight_is_staged_once(engine: str, dtype: mx.Dtype) -> None:
    layer, x = frozen_layer(engine, dtype), mx.random.normal(X)
    for _ in range(5):
        check(layer, x)
    assert store() == (4, 1)
    packed = ane.counters()["weights_staged_bytes"]
    check(layer, x)
    assert ane.counters()["weights_staged_bytes"] == packed > 0
    assert _ext.cache_bytes() > 0


def test_a_trained_weight_is_packed_per_call(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    layer.unfreeze()
    check(layer, x)
    check(layer, x)
    assert store() == (0, 0)
    assert _ext.cache_bytes() == 0
    assert ane.counters()["weights_packed_bytes"] > 0


def test_two_calls_in_one_eval(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    first, second = layer(x), layer(2 * x)
    mx.eval(first, second)
    expected = exact(x) @ exact(layer.weight).T
    assert norm_error(first, expected) <= 2e-3
    assert norm_error(second, 2 * expected) <= 2e-3


def test_a_weight_that_is_not_computed_yet(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    layer.weight = mx.random.normal((64, 96)) * 3  # lazy
    y = layer(x)
    mx.eval(y)
    assert norm_error(y, exact(x) @ exact(layer.weight).T) <= 2e-3


def test_two_training_steps_in_one_eval(engine: str) -> None:
    def train(device: str, steps_per_eval: int) -> mx.array:
        mx.random.seed(0)
        model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 96))
        ane.convert(model, device=device)
        optimizer = ane.optimizers.AdamW(1e-2)
        step = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x) - x)))
        for number in range(6):
            x = mx.random.normal(X, key=mx.random.key(number))
            optimizer.update(model, step(x)[1])
            if (number + 1) % steps_per_eval == 0:
                mx.eval(model.parameters(), optimizer.state)
        return model.layers[0].weight

    one, two = train(engine, 1), train(engine, 2)
    assert norm_error(two, exact(one)) <= 1e-6
    assert norm_error(two, exact(train("cpu", 2))) <= 3e-2


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.AdamW, ane.optimizers.AdamW])
def test_a_layer_frozen_by_mistake_still_sees_every_update(engine: str, optimizer):
    # Trained through its arrays although the layer says frozen: an update makes a
    # new buffer, or (ours) releases the staged one before it writes in place.
    layer, x = frozen_layer(engine), mx.random.normal(X)
    update = optimizer(0.1)
    for _ in range(6):
        check(layer, x)
        gradient = mx.grad(lambda w: mx.sum((x @ w.T) ** 2))(layer.weight)
        layer.weight = update.apply_gradients({"w": gradient}, {"w": layer.weight})["w"]
        del gradient
        mx.eval(layer.weight, update.state)
    check(layer, x)


def test_our_update_of_a_staged_weight_is_in_place(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    optimizer = ane.optimizers.AdamW(0.1)
    gradients = {"weight": mx.ones((64, 96))}
    optimizer.init(layer.parameters())
    mx.eval(gradients, optimizer.state)
    for _ in range(3):
        check(layer, x)  # staged once: the store shares the buffer
        layer.update(optimizer.apply_gradients(gradients, layer.parameters()))
        mx.eval(layer.parameters(), optimizer.state)
    assert store() == (2, 1)
    assert ane.counters()["adam_allocated"] == 0
    assert ane.counters()["adam_donated"] == 3 * 3


@pytest.mark.parametrize("optimizer", [optim.AdamW, ane.optimizers.AdamW])
def test_memory_is_flat_over_100_steps(engine: str, optimizer) -> None:
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 96))
    model.layers[0].freeze()
    ane.convert(model, device=engine)
    update = optimizer(1e-3)
    step = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x) - x)))
    x = mx.random.normal(X)
    active, staged = [], []
    for _ in range(100):
        loss, gradients = step(x)
        update.update(model, gradients)
        del gradients
        mx.eval(loss, model.parameters(), update.state)
        active.append(mx.get_active_memory())
        staged.append(_ext.cache_bytes())
    # A stream may hold the last tensors a little longer or shorter.
    assert max(active[50:]) <= max(active[10:50])
    assert staged[99] == staged[10]


def test_entries_of_dead_weights_are_swept(engine: str) -> None:
    x = mx.random.normal(X)
    for _ in range(10):
        check(frozen_layer(engine), x)
    kept = frozen_layer(engine)
    check(kept, x)
    one = _ext.cache_bytes()
    ane.clear_cache()
    check(kept, x)
    assert one == _ext.cache_bytes()


def test_a_view_and_its_parent(engine: str) -> None:
    parent = mx.random.normal((128, 96))
    mx.eval(parent)
    whole, part, x = (
        ane.nn.ANELinear(96, 128, bias=False, device=engine),
        frozen_layer(engine),
        mx.random.normal(X),
    )
    whole.freeze()
    whole.weight, part.weight = parent, parent[64:]
    mx.eval(part.weight)
    for _ in range(2):
        check(whole, x)
        check(part, x)
    part.weight = parent[:64]
    mx.eval(part.weight)
    check(part, x)
    part.weight = parent[::2]  # the same buffer and offset, other strides
    mx.eval(part.weight)
    check(part, x)


def test_back_to_old_arrays(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    old = layer.parameters()
    check(layer, x)
    layer.update(tree_map(lambda w: -2 * w, old))
    mx.eval(layer.parameters())
    check(layer, x)
    layer.update(old)
    check(layer, x)


def test_freezing_under_a_cached_compile(engine: str) -> None:
    model = nn.Sequential(frozen_layer(engine))
    layer, x = model.layers[0], mx.random.normal(X)
    state = [model.state]
    compiled = mx.compile(lambda x: model(x), inputs=state, outputs=state)
    for change in ("none", "unfreeze", "train", "freeze", "swap", "none"):
        if change == "unfreeze":
            layer.unfreeze()
        if change == "train":
            layer.weight = layer.weight * 1.5
            mx.eval(layer.weight)
        if change == "freeze":
            layer.freeze()
        if change == "swap":
            layer.weight = mx.random.normal((64, 96))
        expected = exact(x) @ exact(layer.weight).T
        assert norm_error(compiled(x), expected) <= 2e-3, change


def test_budget(engine: str) -> None:
    layers = [frozen_layer(engine) for _ in range(8)]
    x = mx.random.normal(X)
    check(layers[0], x)
    one = _ext.cache_bytes()
    ane.clear_cache()
    assert ane.set_cache_limit(4 * one) == 1 << 30
    for _ in range(3):
        for layer in layers:
            check(layer, x)
            assert _ext.cache_bytes() <= 4 * one
    assert ane.counters()["weight_store_over_budget"] > 0
    assert ane.counters()["weight_store_hits"] > 0


def test_one_limit_bounds_programs_too(engine: str) -> None:
    layers = [nn.Linear(96, n, bias=False) for n in (64, 80, 100)]
    for layer in layers:
        ane.convert(nn.Sequential(layer), device=engine)
    x = mx.random.normal(X)
    check(layers[0], x)
    one = _ext.program_bytes()
    for layer in layers:
        check(layer, x)
    assert _ext.resident_programs() == 3
    ane.set_cache_limit(2 * one)  # the oldest go, at once
    assert one <= _ext.program_bytes() <= 2 * one
    assert _ext.resident_programs() < 3
    for layer in layers:
        check(layer, x)
        assert _ext.program_bytes() <= 2 * one
    ane.set_cache_limit(0)
    assert _ext.program_bytes() == _ext.cache_bytes() == 0
    ane.reset_counters()
    check(layers[0], x)
    assert _ext.program_bytes() == _ext.cache_bytes() == 0
    assert ane.counters()["placed_over_budget"] == 1


@pytest.mark.parametrize(
    ("limit", "want"),
    [
        *[(7, 7), ("7", 7), ("1GB", 10**9), ("1GiB", 2**30), (" 1.5kb ", 1500)],
        *[("512MiB", 2**29), ("3 MB", 3 * 10**6), ("9 B", 9), ("-1", None)],
        *[(-1, None), (1.5, None), ("much", None), ("1GBB", None), ("1 iB", None)],
        *[(None, None), (True, None), ("99999999TB", None)],
    ],
)
def test_limits_in_words(limit: Any, want: int | None) -> None:
    if want is None:
        with pytest.raises(ValueError, match=r"^\[mlx_ane.set_cache_limit\] limit is"):
            ane.set_cache_limit(limit)
        assert ane.set_cache_limit(0) == 1 << 30
    else:
        ane.set_cache_limit(limit)
        assert ane.set_cache_limit(0) == want


def test_clear_cache_sees_writes_through_aliases(engine: str) -> None:
    layer, x = frozen_layer(engine), mx.random.normal(X)
    check(layer, x)
    np.asarray(layer.weight)[:] = 1.0  # invisible to MLX, as documented
    ane.clear_cache()
    check(layer, x)


def test_more_rows_than_before(engine: str) -> None:
    layer = frozen_layer(engine)
    for rows in (40, 700, 64, 2500, 40):
        check(layer, mx.random.normal((rows, 96)))


def test_a_model_larger_than_the_budget_keeps_what_fits(engine: str) -> None:
    layers = [frozen_layer(engine) for _ in range(8)]
    x = mx.random.normal(X)
    check(layers[0], x)
    one = _ext.cache_bytes()
    ane.clear_cache()
    ane.set_cache_limit(4 * one)
    ane.reset_counters()
    for _ in range(5):
        for layer in layers:
            check(layer, x)
    counts = ane.counters()
    # Four stay staged; the others, of the same step, do not drive them out.
    assert counts["weights_staged_bytes"] == 4 * layers[0].weight.size * 2
    assert counts["weight_store_hits"] == 4 * 4
    # Weights that are used no more leave for those asked for twice since.
    ane.reset_counters()
    for _ in range(3):
        for layer in layers[4:]:
            check(layer, x)
    assert ane.counters()["weight_store_hits"] == 4 * 2
    assert _ext.cache_bytes() == 4 * one
