"""Fixtures of the suite: one `device` over what this machine has, and a clean slate."""

from __future__ import annotations

import os
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import settings

import mlx_ane as ane
from mlx_ane import _ext

# Failed device calls are errors unless a test asks for another answer.
FALLBACK = "error"

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("suite")


def available_devices() -> list[str]:
    """Devices that tests run on; MLX_ANE_DEVICE restricts them to one."""
    chosen = os.environ.get("MLX_ANE_DEVICE", "auto")
    if chosen != "auto":
        return [chosen]
    return ["cpu", "emulated"] + (["ane"] if ane.is_available() else [])


DEVICES = available_devices()
#: Devices with the engine's numerics.
ENGINES = [device for device in DEVICES if device != "cpu"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with argument `device` on each device, `engine` on each engine."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ENGINES)


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    """Seeds, settings and caches do not pass from one test to the next."""
    mx.random.seed(0)
    np.random.seed(0)
    ane.set_default_device("auto")
    _ext.set_fallback(FALLBACK)
    _ext.set_layout("natural")  # else that of the verdict which a test left
    min_rows = _ext.set_min_rows(32)
    limit = ane.set_cache_limit(1 << 30)
    ane.reset_counters()
    yield
    _ext.set_min_rows(min_rows)
    ane.set_cache_limit(limit)
    ane.clear_cache()
    ane.restore_devices()
    ane.emulated.reset()
    mx.set_default_device(mx.cpu)
