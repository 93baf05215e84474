"""Pytest plugin: after each test, nothing of Apple's frameworks is left alive.

It counts what the doubles hold (objects, surfaces, locks, loaded programs) and the
folders that the route has staged. Without the doubles it does nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from mlx_ane import _ext

_doubles = getattr(getattr(_ext, "apple", None), "doubles", None)


def leftovers() -> list[str]:
    """What is alive although every cache has been cleared."""
    alive = [f"{count} {kind}" for kind, count in _doubles.live().items() if count]
    return alive + _doubles.staged()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail the teardown of a test that leaks; a hung call holds its own."""
    yield
    if _doubles is None:
        return
    _doubles.clear_faults()
    if _ext.abandoned_calls():
        return
    gc.collect()
    _ext.clear_cache()
    found = leftovers()
    assert not found, f"{item.nodeid} leaves {', '.join(found)}"
