"""preserved(): run a model and leave no trace of it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np

#: Puts one object back as it was.
PutBack = Callable[[], None]


@contextmanager
def preserved(*roots: Any) -> Iterator[PutBack]:
    """What a model, its inputs and MLX's generator are now, they are afterwards.

    Everything that can be reached from ``roots`` comes back: arrays with their
    objects and values, also those written to in place; containers (modules, dicts,
    lists, sets) with their items; attributes of modules and of objects whose class
    is not Python's own, such as training modes, counters and caches. Nothing is
    copied but references, and nothing is computed.

    Args:
        *roots: Modules, containers or objects.

    Yields:
        A function that puts everything back at once, to run from the same state
        again.
    """
    put_backs = [_random_state(), *_walk(list(roots))]

    def rewind() -> None:
        for put_back in put_backs:
            put_back()

    try:
        yield rewind
    finally:
        rewind()


def _random_state() -> PutBack:
    state: Any = mx.random.state  # of this thread; its arrays can be written to only
    saved = [mx.array(key) for key in state]

    def put_back() -> None:
        for key, value in zip(state, saved, strict=True):
            key[...] = value

    return put_back


def _walk(left: list[Any]) -> Iterator[PutBack]:
    """How to put back each object that can be reached, each object once."""
    seen: dict[int, Any] = {}  # the objects too: an id is free once its object is gone
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, mx.array):
            yield _array(thing)
        elif isinstance(thing, np.ndarray):
            yield _numpy_array(thing)
        elif isinstance(thing, dict):
            yield _dict(thing)
            left += thing.values()
        elif isinstance(thing, (list, deque)):
            yield _list(thing)
            left += thing
        elif isinstance(thing, set):
            yield _set(thing)
        elif isinstance(thing, tuple):
            left += thing
        if _may_be_state(thing):
            slots = _slots(thing)
            yield _attributes(thing, slots)
            left += [getattr(thing, name) for name in slots if hasattr(thing, name)]
            left.append(getattr(thing, "__dict__", None))


def _may_be_state(thing: object) -> bool:
    """Whether its attributes may be a model's: a logger's or a lock's are not."""
    module = type(thing).__module__.partition(".")[0]
    return module not in sys.stdlib_module_names or isinstance(thing, SimpleNamespace)


def _slots(thing: object) -> list[str]:
    """Attributes that a class keeps outside of `__dict__`."""
    names = [getattr(cls, "__slots__", ()) for cls in type(thing).__mro__]
    names = [(n,) if isinstance(n, str) else tuple(n) for n in names]
    return [n for some in names for n in some if n not in ("__dict__", "__weakref__")]


def _array(array: mx.array) -> PutBack:
    saved = mx.array(array)  # shares the data, which MLX never changes in place

    def put_back() -> None:
        array[...] = saved

    return put_back


def _numpy_array(array: Any) -> PutBack:
    saved = array.copy()

    def put_back() -> None:
        if array.flags.writeable:
            array[...] = saved

    return put_back


def _dict(items: dict[Any, Any]) -> PutBack:
    saved = dict(items)

    def put_back() -> None:
        if _differ([*items, *items.values()], [*saved, *saved.values()]):
            items.clear()
            for key, value in saved.items():  # nn.Module.update is something else
                items[key] = value

    return put_back


def _list(items: list[Any] | deque[Any]) -> PutBack:
    saved = list(items)

    def put_back() -> None:
        if _differ(items, saved):
            items.clear()
            items.extend(saved)

    return put_back


def _set(items: set[Any]) -> PutBack:
    saved = set(items)

    def put_back() -> None:
        if items != saved:
            items.clear()
            items.update(saved)

    return put_back


def _attributes(thing: object, names: list[str]) -> PutBack:
    saved = {name: getattr(thing, name) for name in names if hasattr(thing, name)}

    def put_back() -> None:
        for name in names:
            if name in saved:
                object.__setattr__(thing, name, saved[name])  # frozen dataclasses too
            elif hasattr(thing, name):
                object.__delattr__(thing, name)

    return put_back


def _differ(a: Any, b: Any) -> bool:
    return len(a) != len(b) or any(x is not y for x, y in zip(a, b, strict=True))
