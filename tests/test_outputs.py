"""Memory of outputs: reused when freed, bounded, and never with another's values."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
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
    product(1.0)
    others = [product(2.0, rows=1025), product(3.0, rows=1023)]
    assert _ext.kept_output_bytes() == BYTES
    assert mx.all(others[0] == 16).item() and mx.all(others[1] == 24).item()


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


def test_a_wrong_limit_is_an_error_at_import() -> None:
    failed = run_python("import mlx_ane", check=False, MLX_ANE_OUTPUT_CACHE="much")
    assert "MLX_ANE_OUTPUT_CACHE is 'much', need a whole number" in failed.stderr
