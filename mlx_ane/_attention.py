"""Attention of ours for one model: its modules' methods over other globals.

MLX's function stays where it is. A module whose methods call it, themselves or through
helpers, gets a subclass of its class, in which those methods and helpers are the same
code over globals that hold ours. No other module sees these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dis import get_instructions
from itertools import chain
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import mlx.core as mx
from mlx import nn

from mlx_ane import fast
from mlx_ane._device import resolve
from mlx_ane._exchange import Exchanged
from mlx_ane._types import Device

NAME = "scaled_dot_product_attention"
_THEIRS = mx.fast.scaled_dot_product_attention
#: What mx.compile returns; it lends the `__code__` of its function, but not the
#: options that it was compiled with.
_Compiled: type = type(mx.compile(lambda: None))


class Attending(Exchanged):
    """Mixed into a class that is made of another one and attends through ours."""

    #: A device name, or None to follow the default device.
    _attention_device: ClassVar[str | None]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Another process has to make the class; the contents go as they always do.
        contents: Any = super().__reduce_ex__(max(protocol, 2))[2:]
        return (_blank, (self._original, self._attention_device), *contents)


def attention_device(module: nn.Module) -> Device | None:
    """The device of a module's next attention; None if that is not ours."""
    if not isinstance(module, Attending):
        return None
    return resolve(module._attention_device, "convert")


def attending_class(
    module: nn.Module, device: Device | None
) -> tuple[type[Attending] | None, str]:
    """The class with which a module attends through our function, if it can.

    Args:
        module (nn.Module): Of its original class.
        device (str, optional): Where to attend, as for :func:`mlx_ane.convert`.

    Returns:
        The subclass, or None if no method can be rebound; and what stays on MLX's
        function and why, which is empty where there is nothing of this kind.
    """
    methods, misses = _methods(type(module))
    held = [name for name, value in vars(module).items() if _Search().reaches(value)]
    misses += [f"{name}: an attribute of the module" for name in held]
    why = "; ".join(dict.fromkeys(misses))
    return (_made_of(type(module), device, methods) if methods else None), why


def _methods(original: type[Any]) -> tuple[dict[str, Any], list[str]]:
    """Methods of a class that attend and can be rebound, and why others cannot."""
    search = _Search()
    methods: dict[str, Any] = {}
    for owner in original.__mro__[: original.__mro__.index(nn.Module)]:
        for name, value in vars(owner).items():
            if name == "__init__" or not search.reaches(value):
                continue
            called = _attribute(original, name)
            if called is value:
                methods[name] = value
            elif "super" in _names(called):
                search.misses.append(f"{owner.__name__}.{name}: called by super()")
    return methods, search.misses


def _blank(original: type[Any], device: Device | None) -> Any:
    """A module without contents, for copy and pickle."""
    methods, _ = _methods(original)
    cls: Any = _made_of(original, device, methods) if methods else original
    return cls.__new__(cls)


#: Classes that some module has, by what they are made of.
_made: WeakValueDictionary[tuple[Any, ...], type[Any]] = WeakValueDictionary()


def _made_of(
    original: type[Any], device: Device | None, methods: dict[str, Any]
) -> type[Attending]:
    key = (original, device, *methods.values())
    cls = _made.get(key)
    if cls is None:
        rebind = _Rebinding(device)
        namespace = {name: rebind(method) for name, method in methods.items()}
        namespace |= {"_original": original, "_attention_device": device}
        namespace["__module__"] = __name__
        cls = type(f"ANE{original.__name__}", (Attending, original), namespace)
        _made[key] = cls
    return cls


# -- what a function calls ------------------------------------------------------------

_FUNCTIONS = (FunctionType, _Compiled, staticmethod, classmethod)


def _attribute(cls: type[Any], name: str) -> Any:
    """An attribute of a class as it is written there."""
    return next(vars(c)[name] for c in cls.__mro__ if name in vars(c))


def _codes(function: Any) -> Iterator[CodeType]:
    """A function's code and that of the functions that it defines."""
    codes = [getattr(getattr(function, "__func__", function), "__code__", None)]
    while codes:
        if isinstance(code := codes.pop(), CodeType):
            yield code
            codes += code.co_consts


def _names(function: Any) -> frozenset[str]:
    """Names of globals, attributes and enclosing variables in a function's code."""
    names = [(*code.co_names, *code.co_freevars) for code in _codes(function)]
    return frozenset(chain.from_iterable(names))


def _globals(function: Any) -> dict[str, Any]:
    """The globals that a function's code loads."""
    loads = chain.from_iterable(map(get_instructions, _codes(function)))
    names = {load.argval for load in loads if load.opname == "LOAD_GLOBAL"}
    known = function.__globals__
    return {name: known[name] for name in names & known.keys()}


def _cells(function: Any) -> dict[str, CellType]:
    """Variables of enclosing functions."""
    names = function.__code__.co_freevars
    return dict(zip(names, function.__closure__ or (), strict=True))


def _parts(value: Any, names: frozenset[str]) -> dict[str, Any]:
    """What code with these names can come to by a value, by name."""
    if value is mx.fast:  # by place: something else may stand there for a while
        return {NAME: _THEIRS} if NAME in names else {}
    if isinstance(value, ModuleType):
        return {n: vars(value)[n] for n in names & vars(value).keys()}
    if isinstance(value, (staticmethod, classmethod)):
        return {"": value.__func__}
    if isinstance(value, functools.partial):
        return {"": value.func}
    if isinstance(value, (FunctionType, _Compiled)):
        function: Any = value
        cells = _cells(function).items()
        bound = {n: cell.cell_contents for n, cell in cells if cell != CellType()}
        return _globals(function) | bound
    return {}


class _Search:
    """Which values lead to MLX's function."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, frozenset[str]], bool] = {}
        #: What leads there and cannot be rebound, and why.
        self.misses: list[str] = []

    def reaches(self, value: Any, names: frozenset[str] = frozenset()) -> bool:
        """Whether code with these names can come to MLX's function by a value."""
        if value is _THEIRS:
            return True
        if isinstance(value, _FUNCTIONS):
            names = _names(value)
        key = (id(value), names)
        if key not in self._known:
            self._known[key] = False  # until its parts are known, which may call it
            parts = _parts(value, names).values()
            found = any([self.reaches(part, names) for part in parts])
            self._known[key] = found and not isinstance(value, _Compiled)
            if found and isinstance(value, _Compiled):
                self._miss(value, "compiled by mx.compile")
            elif NAME in names and not found and isinstance(value, FunctionType):
                self._miss(value, f"which {NAME} it calls cannot be seen")
        return self._known[key]

    def _miss(self, function: Any, why: str) -> None:
        self.misses.append(f"{function.__name__}: {why}")


# -- the same code over other globals -------------------------------------------------


class _Globals(dict[str, Any]):
    """A function's globals as they are at each look, but for what stands here."""

    def __init__(self, function: Any) -> None:
        super().__init__(__builtins__=function.__builtins__)
        self._theirs = function.__globals__

    def __missing__(self, name: str) -> Any:
        return self._theirs[name]


class _Stand:
    """A module but for some attributes."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Ours:
    """Our function on a device; as MLX's it is no method where a class holds it."""

    def __init__(self, device: Device | None) -> None:
        self._device = device

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return fast.scaled_dot_product_attention(*args, device=self._device, **kwargs)


class _Rebinding(_Search):
    """Makes what stands in place of functions and modules, each once."""

    def __init__(self, device: Device | None) -> None:
        super().__init__()
        self._new: dict[tuple[int, frozenset[str]], Any] = {}
        self._ours = _Ours(device)

    def __call__(self, value: Any, names: frozenset[str] = frozenset()) -> Any:
        """What stands in place of a value; itself if it does not lead to MLX's."""
        if value is _THEIRS:
            return self._ours
        if not self.reaches(value, names):
            return value
        if isinstance(value, (staticmethod, classmethod)):
            return type(value)(self(value.__func__))
        if isinstance(value, functools.partial):
            return functools.partial(self(value.func), *value.args, **value.keywords)
        if isinstance(value, FunctionType):
            names = _names(value)
        key = (id(value), names)
        if key in self._new:
            return self._new[key]
        parts = _parts(value, names)
        parts = {n: v for n, v in parts.items() if self.reaches(v, names)}
        new = _Stand(value) if isinstance(value, ModuleType) else _like(value, parts)
        self._new[key] = new  # before its parts are made, which may lead back to it
        for name, part in parts.items():
            _put(new, name, self(part, names))
        return new


def _like(function: FunctionType, own: Iterable[str]) -> FunctionType:
    """The same code over globals and, for these names, variables of its own."""
    cells = _cells(function)
    new = FunctionType(
        function.__code__,
        _Globals(function),
        function.__name__,
        function.__defaults__,
        tuple(CellType() if n in own else cell for n, cell in cells.items()),
    )
    new.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(new, function)
    return new


def _put(new: Any, name: str, value: Any) -> None:
    if isinstance(new, _Stand):
        setattr(new, name, value)
    elif name in (cells := _cells(new)):
        cells[name].cell_contents = value
    else:
        new.__globals__[name] = value
