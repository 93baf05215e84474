"""Exchange the class of a module in place: who else holds the object sees it too.

An exchanged module keeps its identity, arrays, freezing and attributes. What its
new class needs beside them are plain values in the module's `__dict__`, which MLX
never counts among the parameters and which deepcopy and pickle carry along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from mlx import nn

M = TypeVar("M", bound=nn.Module)


class Exchanged:
    """Mixed into a class that takes the place of another one, its original."""

    #: The class of the module before; a subclass of it has the same layout.
    _original: ClassVar[type[Any]]
    #: Attributes of the module that are this class's own.
    _settings: ClassVar[tuple[str, ...]] = ()


def is_exchanged(module: nn.Module) -> bool:
    """Whether a module is of a class of ours; somebody's subclass of one is not."""
    return "_original" in vars(type(module))


def original_class(module: nn.Module) -> type[Any]:
    """The class that a module has, or had before it was exchanged."""
    cls: Any = type(module)
    return cls._original if is_exchanged(module) else cls


def exchange(module: nn.Module, cls: type[Any], **settings: Any) -> None:
    """Give a module a class of ours, and the class's settings.

    Args:
        module (nn.Module): Of the class's original, exchanged or not.
        cls (type): A subclass of Exchanged and of the module's class.
        **settings: Some of the class's settings.
    """
    restore(module)
    module.__class__ = cls
    module.__dict__.update(settings)


def restore(module: nn.Module) -> None:
    """Give a module its original class back; nothing of ours stays on it."""
    if isinstance(module, Exchanged):
        for name in module._settings:
            module.__dict__.pop(name, None)
        module.__class__ = module._original


def shallow_copy(module: M) -> M:
    """Another module of the same class, arrays and freezing."""
    new = dict.__new__(type(module))
    dict.update(new, module)
    new.__dict__.update(module.__dict__)
    new._no_grad = set(module._no_grad)
    return new


@contextmanager
def classes(pairs: Iterable[tuple[nn.Module, type[Any]]]) -> Iterator[None]:
    """Each module of its class while this is open, however it ends."""
    pairs = list(pairs)
    before = [(module, type(module)) for module, _ in pairs]
    try:
        for module, cls in pairs:
            module.__class__ = cls
        yield
    finally:
        for module, cls in reversed(before):
            module.__class__ = cls


@contextmanager
def originals(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Each module of its original class while this is open; settings stay on it."""
    with classes((module, original_class(module)) for module in modules):
        yield
