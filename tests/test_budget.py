"""Budgets of programs: what does not fit is placed on the BLAS, and is no failure."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
import pytest
from cases import exact, norm_error

import mlx_ane as ane
from mlx_ane import _ext

pytestmark = pytest.mark.skipif(
    "emulated" not in __import__("conftest").DEVICES, reason="counts compiles there"
)

BUDGET = 96


@pytest.fixture(autouse=True)
def fresh_engine() -> Iterator[None]:
    """As in a fresh process: no compilation counted, no program loaded."""
    ane.clear_cache()
    ane.emulated.reset()
    ane.reset_counters()
    yield
    ane.emulated.reset()


def run(k: int, n: int, rows: int = 40) -> None:
    """One product of x (rows, k), which must be right wherever it runs."""
    y = ane.linear(mx.full((rows, k), 0.5), mx.full((n, k), 0.25), device="emulated")
    assert mx.allclose(y, mx.full((rows, n), k / 8), rtol=2e-3)


def run_shapes(count: int, depth: int = 0) -> None:
    """So many products, each a program of its own; another set for each depth."""
    for i in range(count):
        run(32 * (i % 12 + 1) + 384 * depth, 32 * (i // 12 + 1))


def counts(*names: str) -> tuple[int, ...]:
    found = ane.counters()
    return tuple(found[name] for name in names)


class Wide(nn.Module):
    """500 layers, no two of one shape."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(32 * k, 32 * n) for k in range(1, 26) for n in range(1, 21)]
        self.layers = [nn.Linear(k, n) for k, n in sizes]

    def __call__(self, x: mx.array) -> mx.array:
        # x: (S, 800) -> ()
        parts = [layer(x[:, : layer.weight.shape[1]]) for layer in self.layers]
        return sum(mx.mean(mx.square(y - 1)) for y in parts)


def train(device: str, steps: int) -> tuple[list[float], ane.ConversionReport]:
    mx.random.seed(0)
    model = Wide()
    report = ane.convert(model, device=device)
    optimizer = ane.optimizers.AdamW(1e-3)
    step = nn.value_and_grad(model, model)
    losses = []
    for number in range(steps):
        loss, gradients = step(mx.random.normal((40, 800), key=mx.random.key(number)))
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
    return losses, report


def test_a_model_with_500_shapes_trains() -> None:
    expected, _ = train("cpu", steps=3)
    ane.reset_counters()
    losses, report = train("emulated", steps=3)  # a fallback would be an error
    assert losses == pytest.approx(expected, rel=1e-5)
    assert counts("linear_calls", "device_calls") == (1500, 3 * BUDGET)
    assert counts("placed_over_budget") == (1500 - 3 * BUDGET,)
    # What a step uses stays: no program is traded for another of the same step.
    assert counts("compiles", "executables_evicted") == (BUDGET, 0)
    live = report.placement()
    assert sum(row["on_device"] for row in live.values()) == 3 * BUDGET
    assert {c for row in live.values() for c in row["placed"]} == {"over_budget"}
    assert not any(row["fallback"] for row in live.values())


def test_programs_that_fell_out_of_use_make_room() -> None:
    for _ in range(2):
        run_shapes(BUDGET)
    for _ in range(3):
        run_shapes(10, depth=1)
    # Asked for once: placed. Twice: the least recently used ones leave.
    assert counts("placed_over_budget", "executables_evicted") == (10, 10)
    assert counts("device_calls") == (2 * BUDGET + 2 * 10,)
    assert _ext.resident_programs() == BUDGET


def test_a_device_that_takes_no_more_programs_keeps_what_it_has() -> None:
    ane.emulated.configure(allow=[])  # enforce the cap on compilations too
    # 119 compilations a process: the first 96 programs and 23 in their place.
    run_shapes(BUDGET)
    for _ in range(8):
        run_shapes(40, depth=1)
    assert ane.emulated.usage()["compiles"] == 119
    assert not any("fallback" in name and n for name, n in ane.counters().items())
    # One program was unloaded in vain; from then on nothing is.
    assert counts("executables_evicted") == (119 - BUDGET + 1,)
    assert _ext.resident_programs() == BUDGET - 1
    # A refusing device is asked less and less.
    assert counts("compiles")[0] - 119 <= 8


def test_a_refused_program_is_placed_and_asked_for_later() -> None:
    with ane.emulated.faults("cap_reached:count=1"):
        run(64, 96)
        assert counts("placed_over_budget", "device_calls") == (1, 0)
        run(64, 96)
        assert counts("placed_over_budget", "device_calls") == (1, 1)
    assert "fallback_cap_reached" not in ane.counters()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
def test_a_larger_bucket_serves_where_there_is_no_room(frozen, bits) -> None:
    layer = nn.Linear(64, 96, bias=False)
    weight = exact(layer.weight)
    if bits:
        layer = layer.to_quantized(bits=bits)
        weight = exact(
            mx.dequantize(layer.weight, layer.scales, layer.biases, bits=bits)
        )
    if frozen:
        layer.freeze()
    model = nn.Sequential(layer)
    ane.convert(model, device="emulated")

    def check(rows: int) -> None:
        x = mx.random.normal((rows, 64))
        assert norm_error(model(x), exact(x) @ weight.T) <= 2e-3

    check(40)  # staged for 64 rows, if frozen
    check(1000)
    ane.clear_cache()
    check(200)  # a program of 256 rows
    run_shapes(BUDGET - 1, depth=2)
    ane.reset_counters()
    check(100)  # 128 rows do not fit any more, 256 are there
    assert counts("device_calls", "executables_merged", "padded_rows") == (1, 1, 156)
    check(40)  # a quarter of 256, still worth it
    assert counts("device_calls", "executables_merged") == (2, 2)
    check(1000)  # nothing as large is there
    assert counts("device_calls", "placed_over_budget") == (2, 1)


def test_a_call_without_a_program_stages_no_weight() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64).to_quantized(32, 8))
    model.freeze()
    ane.convert(model, device="emulated")
    run_shapes(BUDGET, depth=2)
    run_shapes(BUDGET, depth=2)  # in use: they stay
    mx.eval(model(mx.ones((40, 64))))
    assert counts("placed_over_budget") == (2,)
    assert _ext.cache_bytes() == 0
    ane.clear_cache()
    mx.eval(model(mx.ones((40, 64))))
    assert _ext.cache_bytes() > 0


def test_a_weight_staged_for_few_rows_meets_a_larger_program() -> None:
    layer = nn.Linear(512, 32, bias=False)  # x is larger than the weight
    layer.freeze()
    model = nn.Sequential(layer)
    ane.convert(model, device="emulated")
    weight = exact(layer.weight)

    def check(rows: int) -> None:
        x = mx.random.normal((rows, 512))
        assert norm_error(model(x), exact(x) @ weight.T) <= 2e-3

    for quantized in (False, True):
        ane.clear_cache()
        check(40)
        run_shapes(BUDGET - 1, depth=2)
        run(512, 32, rows=200)  # asked for once
        run(512, 32, rows=200)  # in the place of the oldest: 64 rows of 512 x 32
        ane.reset_counters()
        check(40)
        assert counts("executables_merged") == (1,)
        # Packed for this call; of a quantised weight only the tiles are left.
        assert counts("device_calls", "placed_over_budget") == (
            (0, 1) if quantized else (1, 0)
        )
        if not quantized:
            plain = nn.Linear(512, 32, bias=False).to_quantized(bits=8)
            weight = exact(
                mx.dequantize(plain.weight, plain.scales, plain.biases, bits=8)
            )
            model = nn.Sequential(plain)
            ane.convert(model, device="emulated")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.down(mx.tanh(self.up(x)))


def test_a_block_without_room_runs_by_layers() -> None:
    model = nn.Sequential(Block())
    x = mx.random.normal((1, 64, 64))
    expected = model(x)
    for granularity in ("layer", "block"):
        report = ane.convert(model, device="emulated", granularity=granularity)
        if granularity == "layer":
            mx.eval(model(x))  # one program serves both layers
            ane.revert(model)
    for _ in range(2):
        run_shapes(BUDGET - 1, depth=2)  # twice: in use, they stay
    ane.reset_counters()
    assert norm_error(model(x), exact(expected)) < 1e-3
    assert counts("block_calls", "placed_over_budget", "device_calls") == (0, 1, 2)
    assert report.placement()["layers.0"]["placed"] == {"over_budget": 1}
    ane.clear_cache()
    assert norm_error(model(x), exact(expected)) < 1e-3
    assert counts("block_calls") == (1,)
