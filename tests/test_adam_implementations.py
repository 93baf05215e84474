"""Adam by Accelerate's tiles, here over own loops, and how one of two is chosen."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from processes import run_python

import mlx_ane as ane
from mlx_ane import _adam, _ext

kernels = _ext.kernels


@pytest.fixture(autouse=True)
def _restored(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLX_ANE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("MLX_ANE_ADAM", raising=False)
    before = kernels.adam_implementation()
    _adam.choose.cache_clear()
    yield
    _adam.choose.cache_clear()
    kernels.set_adam_implementation(before)


def step(name: str, dtype: mx.Dtype, n: int, **options: object) -> dict[str, mx.array]:
    kernels.set_adam_implementation(name)
    rng = np.random.default_rng(0)
    p, g = (mx.array(rng.normal(size=n)).astype(dtype) for _ in range(2))
    optimizer = ane.optimizers.AdamW(1e-3, bias_correction=True, **options)
    _adam.choose()
    kernels.set_adam_implementation(name)
    out = {"p": p}
    for _ in range(5):
        out = optimizer.apply_gradients({"p": g}, out)
    mx.eval(out, optimizer.state)
    return {**out, "m": optimizer.state["p"]["m"], "v": optimizer.state["p"]["v"]}


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}], ids=["plain", "clipped"])
def test_both_agree(n: int, dtype: mx.Dtype, options: dict) -> None:
    loop = step("loop", dtype, n, state_dtype=mx.float32, **options)
    tiles = step("accelerate", dtype, n, state_dtype=mx.float32, **options)
    for key, value in loop.items():
        a, b = (np.array(x.astype(mx.float32)) for x in (value, tiles[key]))
        scale = np.abs(a) + 1e-3 * (key == "p")
        # Some fp32 roundings a step, or one of bfloat16.
        bound = 2.0**-7 if key == "p" and dtype == mx.bfloat16 else 2e-6
        assert (np.abs(a - b) <= bound * scale).all(), key
    if n > 1000 and dtype == mx.float32:
        assert not mx.array_equal(loop["p"], tiles["p"])  # it was another one


CHOSEN = """
import mlx.core as mx
import mlx_ane as ane
from mlx_ane import _ext
ane.optimizers.Adam(0.1).apply_gradients({"p": mx.ones(3)}, {"p": mx.ones(3)})
print(_ext.kernels.adam_implementation())
"""


@pytest.mark.parametrize("name", ["loop", "accelerate", "auto", ""])
def test_the_environment_names_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ANE_ADAM", name)
    expected = "accelerate" if name == "accelerate" else "loop"
    assert run_python(CHOSEN, timeout=60).stdout.split()[-1] == expected


def test_a_wrong_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ANE_ADAM", "fastest")
    with pytest.raises(ValueError, match="MLX_ANE_ADAM"):
        ane.optimizers.Adam(0.1).apply_gradients({"p": mx.ones(3)}, {"p": mx.ones(3)})
    with pytest.raises(ValueError, match='need "loop" or "accelerate"'):
        kernels.set_adam_implementation("fastest")


@pytest.mark.parametrize("real", [True, False], ids=["Accelerate", "stand-in"])
def test_auto_takes_what_was_measured_faster(
    real: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_accelerate", lambda: real)
    assert _adam.choose() == "loop"  # nothing was measured
    _adam.keep({"loop": 10.0, "accelerate": 12.0})
    _adam.choose.cache_clear()
    assert _adam.choose() == ("accelerate" if real else "loop")
    assert kernels.adam_implementation() == _adam.choose()
    _adam.keep({"loop": 13.0, "accelerate": 12.0})
    _adam.choose.cache_clear()
    assert _adam.choose() == "loop"
    _adam._file().write_text("{")  # unreadable: as if nothing was measured
    _adam.choose.cache_clear()
    assert _adam.choose() == "loop"


def test_another_machine_measures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_accelerate", lambda: True)
    _adam.keep({"loop": 10.0, "accelerate": 12.0})
    monkeypatch.setattr(_adam, "__version__", "another")
    assert _adam.stored() == {}


def test_measuring_leaves_the_choice_as_it_was() -> None:
    for name in _adam.IMPLEMENTATIONS:
        kernels.set_adam_implementation(name)
        rates = _adam.measure()
        assert kernels.adam_implementation() == name
        assert rates.keys() == set(_adam.IMPLEMENTATIONS)
        assert all(rate > 0 for rate in rates.values())


def test_a_stand_in_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "has_accelerate", lambda: False)
    assert _adam.label("accelerate") == "Accelerate's stand-in"
    monkeypatch.setattr(kernels, "has_accelerate", lambda: True)
    assert _adam.label("accelerate") == "Accelerate"
