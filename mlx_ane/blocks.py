"""Blocks of a model as engine programs: convert(granularity="block").

A block is a module whose forward is one program and whose gradient is another. Its
class is exchanged in place for one made here; parameters, paths and freezing stay.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

import mlx.core as mx
from mlx import nn

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import resolve
from mlx_ane._exchange import Exchanged, exchange, original_class
from mlx_ane._layers import CLASSES, Site
from mlx_ane.compile import Blocks, call
from mlx_ane.tape import Unsupported

__all__ = ["BlockModule", "block_class", "find_blocks"]

#: Captures of all blocks: equal blocks share theirs, and so their programs.
_captured: Blocks = {}


class BlockModule(Exchanged):
    """Mixed into the class of a block. What cannot be a program runs as it was."""

    _settings: ClassVar[tuple[str, ...]] = ("_device", "_name", "_why")
    _device: str | None = None
    #: The path in its model: its name in counters and errors.
    _name: str = ""
    #: Why a call was no program, the last one; empty if all were.
    _why: str = ""
    _precision: ClassVar[str] = "default"

    @property
    def device(self) -> str:
        """The device of the next call: "ane", "emulated" or "cpu"."""
        return resolve(self._device, "nn")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = self._original.__call__
        if capturing():
            return plain(self, *args, **kwargs)
        device = self.device
        reason = _why_placed(device, args, kwargs)
        if reason is not None:
            _ext.block.place(self._name, reason)
            return plain(self, *args, **kwargs)
        try:
            return call(
                _function(self._original),
                (self, *args),
                kwargs,
                device=device,
                name=self._name,
                blocks=_captured,
                plain=plain,
            )
        except Unsupported as error:
            self.__dict__["_why"] = str(error)
            _ext.block.place(self._name, "untranslated")
            _exchange_children(self)
            return plain(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class has no name that pickle could look up.
        reduced: Any = super().__reduce_ex__(protocol)
        made, (_, *arguments), *state = reduced
        return (_new, (made, self._original, *arguments), *state)


def _new(made: Any, original: type[Any], *arguments: Any) -> Any:
    return made(block_class(original), *arguments)


def block_class(original: type[Any]) -> type[Any]:
    """The class that a module of class ``original`` has as a block."""
    if original not in _classes:
        _classes[original] = _made_class(original)
    return _classes[original]


_classes: dict[type[Any], type[Any]] = {}


def _made_class(original: type[Any]) -> type[Any]:
    names = {
        "_original": original,
        "__module__": __name__,
        "__qualname__": f"ANE{original.__qualname__}",
        "__doc__": f"{original.__name__} as one engine program.",
    }
    return type(f"ANE{original.__name__}", (BlockModule, original), names)


def _function(original: type[Any]) -> Any:
    """The block's function of (module, *args), without mlx-lm's grad_checkpoint.

    A block keeps only its inputs for the backward: it is a checkpoint already.
    """
    function: Any = original.__call__
    while (
        getattr(function, "__qualname__", "")
        == "grad_checkpoint.<locals>.checkpointed_fn"
    ):
        function = inspect.getclosurevars(function).nonlocals["fn"]
    return function


def _why_placed(device: str, args: Any, kwargs: Any) -> str | None:
    """Why a call is not for the engine, as a placement, or None."""
    if device == "cpu":
        return "device_cpu"
    values = list(_leaves((args, kwargs)))
    if not all(
        v is None or isinstance(v, (mx.array, int, float, str, bool, mx.Dtype))
        for v in values
    ):
        return "kv_cache"  # it would be written to
    x = next((v for v in values if isinstance(v, mx.array)), None)
    if (
        x is None
        or x.ndim == 0
        or x.size // max(x.shape[-1], 1) < _ext.block.min_rows()
    ):
        return "few_rows"
    return None


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        yield tree
        return
    for item in tree:
        yield from _leaves(item)


def _exchange_children(block: nn.Module) -> None:
    """Make blocks of the modules that a block which is no program is made of."""
    settings = vars(block)
    for key, child in block.items():
        if (
            isinstance(child, nn.Module)
            and not isinstance(child, Exchanged)
            and _is_composite(child)
        ):
            exchange(
                child,
                block_class(original_class(child)),
                _device=settings.get("_device"),
                _name=f"{settings.get('_name', '')}.{key}",
            )


def _is_composite(module: nn.Module) -> bool:
    """Whether a module is made of layers of ours."""
    layers = [m for m in module.modules() if original_class(m) in CLASSES]
    return callable(module) and bool(layers) and original_class(module) not in CLASSES


def find_blocks(sites: list[Site]) -> list[Site]:
    """The modules that make good blocks: items of lists, made of layers of ours."""
    in_lists: set[int] = set()
    for site in sites:
        for value in site.module.values():
            if isinstance(value, (list, tuple)):
                in_lists |= {id(v) for v in value if isinstance(v, nn.Module)}
    found: list[Site] = []
    inside: set[int] = set()
    for site in sites:  # parents first: a block in a block is part of it
        module = site.module
        if id(module) in inside or id(module) not in in_lists:
            continue
        if _is_composite(module):
            found.append(site)
            inside |= {id(m) for m in module.modules()}
    return found
