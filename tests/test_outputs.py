"""Memory of outputs: reused when freed, bounded, and never with another's values."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn
from processes import run_python

import mlx_ane as ane
from mlx_ane import _ext

pytestmark = pytest.mark.skipif(
    mx.is_available(mx.gpu), reason="MLX keeps freed memory itself"
)
BYTES = 4 * 1024 * 512


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    gc.collect()
    ane.clear_cache()
    yield
    ane.clear_cache()


def product(value: float, rows: int = 1024) -> mx.array:
    """(rows, 512), every element 8 * value."""
    out = ane.matmul(mx.full((rows, 8), value), mx.ones((8, 512)), device="cpu")
    mx.eval(out)
    return out


def test_a_freed_output_serves_the_next_of_its_size() -> None:
    first = product(1.0)
    assert _ext.kept_output_bytes() == 0
    address = np.array(first, copy=False).ctypes.data
    del first
    assert _ext.kept_output_bytes() == BYTES
    second = product(2.0)
    assert np.array(second, copy=False).ctypes.data == address
    assert _ext.kept_output_bytes() == 0
    assert mx.all(second == 16).item()


def test_a_freed_output_serves_no_other_size() -> None:
    sizes = [1024, 1040, 1030]
    mx.eval(held := [product(0.0, rows) for rows in sizes])
    del held
    others = [product(2.0, rows=1025), product(3.0, rows=1023)]
    assert mx.all(others[0] == 16).item() and mx.all(others[1] == 24).item()


def test_a_new_size_takes_the_place_of_the_oldest() -> None:
    held = [product(1.0, rows) for rows in range(1000, 1008)]
    while held:
        held.pop(0)  # the oldest first
    kept = [4 * 512 * rows for rows in range(1000, 1008)]
    assert _ext.kept_output_bytes() == sum(kept)
    new = product(1.0, rows=999)
    assert _ext.kept_output_bytes() == sum(kept[2:])  # twice its bytes
    again = [product(1.0, rows) for rows in range(1002, 1008)]
    assert _ext.kept_output_bytes() == 0
    del new, again


def step(rows: int, layers: int = 4) -> None:
    """Forward products of `rows`, each held until the gradients of fixed sizes."""
    forward = [product(1.0, rows) for _ in range(layers)]
    gradients = []
    while forward:
        gradients.append(product(1.0, rows=1024))
        forward.pop()


def test_steps_of_one_shape_find_all_they_need() -> None:
    # In use at once at most 4 outputs, kept between steps 4 and 4 gradients.
    for _ in range(4):
        step(2000)
    for _ in range(20):
        assert _ext.kept_output_bytes() == 4 * (4 * 512 * 2000 + BYTES)
        step(2000)


@pytest.mark.parametrize(
    "lengths",
    [
        [int(n) for n in np.random.default_rng(0).integers(600, 3000, 60)],
        [600 + 30 * i for i in range(60)],
        [600 + 30 * i for i in reversed(range(60))],
        [600 + 300 * (i % 7) for i in range(60)],
        [3000] + 59 * [600],
    ],
    ids=["random", "growing", "falling", "cycle", "once"],
)
def test_sizes_not_asked_for_again_go(lengths: list[int]) -> None:
    before = mx.get_active_memory()
    for rows in lengths:
        step(rows)
        mx.clear_cache()
    largest = 4 * (4 * 512 * max(lengths) + BYTES)
    assert mx.get_active_memory() - before <= largest
    for _ in range(4):
        step(lengths[-1])
    assert _ext.kept_output_bytes() == 4 * (4 * 512 * lengths[-1] + BYTES)


def test_one_large_step_is_forgotten() -> None:
    step(8000)
    for _ in range(30):
        step(600)
    assert _ext.kept_output_bytes() == 4 * (4 * 512 * 600 + BYTES)


def test_training_with_varying_lengths(device: str) -> None:
    def train(model: nn.Module, lengths: list[int]) -> int:
        gc.collect()
        before = mx.get_active_memory()
        optimizer = optim.AdamW(1e-4)
        gradient = nn.value_and_grad(model, lambda x: mx.mean(model(x) ** 2))

        def update(x: mx.array) -> mx.array:
            loss, gradients = gradient(x)
            optimizer.update(model, gradients)
            return loss

        for rows in lengths:
            loss = update(mx.random.normal((rows, 128)))
            mx.eval(loss, model.parameters(), optimizer.state)
            mx.clear_cache()
        return mx.get_active_memory() - before

    def model() -> nn.Module:
        layers = [nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, 256))

    lengths = [int(n) for n in np.random.default_rng(1).integers(1100, 3000, 12)]
    plain = train(model(), [64])  # its rows leave nothing behind
    converted = model()
    ane.convert(converted, device=device)
    active = train(converted, lengths)
    outputs = 4 * max(lengths) * (256 + 128 + 256)
    assert active <= 1.2 * plain + outputs


def test_outputs_in_use_are_never_given_out() -> None:
    held = [product(float(i)) for i in range(4)]
    views = [held[0][3:], held[1].T]
    mx.eval(views)
    del held[:2]
    later = [product(-1.0) for _ in range(4)]
    assert mx.all(views[0] == 0).item() and mx.all(views[1] == 8).item()
    assert mx.all(held[0] == 16).item() and mx.all(held[1] == 24).item()
    assert all(mx.all(out == -8).item() for out in later)


def test_small_outputs_go_back_to_mlx() -> None:
    product(1.0, rows=16)
    assert _ext.kept_output_bytes() == 0


def test_clear_cache_returns_them() -> None:
    before = mx.get_active_memory()
    product(1.0)
    assert mx.get_active_memory() >= before + BYTES
    ane.clear_cache()
    assert _ext.kept_output_bytes() == 0
    assert mx.get_active_memory() < before + BYTES


def test_one_limit_bounds_them_too() -> None:
    product(1.0)
    assert _ext.kept_output_bytes() == BYTES
    ane.set_cache_limit(BYTES - 1)  # returned at once
    assert _ext.kept_output_bytes() == 0
    product(1.0)
    assert _ext.kept_output_bytes() == 0
    ane.set_cache_limit(BYTES)
    product(1.0)
    assert _ext.kept_output_bytes() == BYTES


def test_threads_share_them() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            for _ in range(30):
                if not mx.all(product(float(number)) == 8 * number).item():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


SCRIPT = """
import mlx.core as mx, mlx_ane as ane
from mlx_ane import _ext
held = [ane.matmul(mx.ones((n, 8)), mx.ones((8, 512)), device="cpu")
        for n in (1000, 1100, 1200)]
mx.eval(held)
while held:
    held.pop(0)
print(_ext.kept_output_bytes())
"""


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("", (1000 + 1100 + 1200) * 2048),
        (f"{2400 * 2048}", (1100 + 1200) * 2048),
        (f"{2 << 20}", 1000 * 2048),
        ("0", 0),
    ],
)
def test_the_oldest_go_beyond_the_limit(limit: str, kept: int) -> None:
    out = run_python(SCRIPT, MLX_ANE_OUTPUT_CACHE=limit)
    assert int(out.stdout) == kept


def test_a_wrong_limit_is_an_error_of_the_first_large_output() -> None:
    code = """
        import mlx.core as mx
        import mlx_ane as ane
        x = mx.ones((1024, 1024))
        mx.eval(ane.linear(x, x, device="cpu"))
    """
    failed = run_python(code, check=False, MLX_ANE_OUTPUT_CACHE="much")
    assert "MLX_ANE_OUTPUT_CACHE" in failed.stderr
    assert "need a whole number" in failed.stderr
