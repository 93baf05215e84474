"""See every product that layers make, without hooks in the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn

from mlx_ane._capturing import capturing
from mlx_ane._exchange import classes
from mlx_ane._layers import product_method
from mlx_ane._preserve import preserved

#: What the caller knows a layer by.
T = TypeVar("T")
#: Called with the caller's item, x (..., K) and y (..., N) of each product.
Note = Callable[[T, mx.array, mx.array], None]


#: A call of a module: the caller's item, and its arguments.
Call = tuple[T, tuple[Any, ...], dict[str, Any]]


def rows_of_products(
    model: nn.Module,
    layers: Sequence[tuple[T, nn.Module]],
    shape: tuple[int, ...],
    where: str,
    modules: Sequence[tuple[T, nn.Module]] = (),
    calls: list[Call[T]] | None = None,
) -> list[tuple[T, int]]:
    """Each product of a forward pass with its rows, in order; nothing is computed.

    The model is left as it was.

    Args:
        model (nn.Module): The model, called with zeros: numbers, else tokens.
        layers (sequence): Pairs of an item and its layer.
        shape (tuple): Shape of the input.
        where (str): The caller, for the error message.
        modules (sequence): Pairs of an item and a module, no layer, whose calls are
            noted too.
        calls (list, optional): Gets these calls in order, each before those in it.

    Raises:
        ValueError: If the model takes no input of this shape.
    """
    errors = []
    seen: list[tuple[T, int]] = []
    entered: list[Call[T]] = [] if calls is None else calls

    def note(item: T, x: mx.array, y: mx.array) -> None:
        seen.append((item, x.size // x.shape[-1]))

    for dtype in (mx.float32, mx.int32):  # tables refuse numbers, layers take both
        seen.clear()
        entered.clear()
        try:
            with preserved(model), watching(layers, note), entering(modules, entered):
                model(mx.zeros(shape, dtype))
        except (ValueError, TypeError, IndexError) as error:
            errors.append(str(error))
        else:
            return seen
    raise ValueError(
        f"[mlx_ane.{where}] the model takes neither tokens nor numbers of shape "
        f"{shape}: {errors[-1]}"
    )


def checked_shapes(batch_shape: Any, where: str) -> list[tuple[int, ...]]:
    """One shape or several as a list of shapes; ValueError if malformed."""
    try:
        shapes = [batch_shape] if isinstance(batch_shape[0], int) else batch_shape
        shapes = [tuple(shape) for shape in shapes]
        good = all(shapes) and all(type(n) is int and n > 0 for s in shapes for n in s)
    except (TypeError, IndexError):
        good = False
    if not good:
        raise ValueError(
            f"[mlx_ane.{where}] batch_shape is {batch_shape!r}, need positive "
            f"integers such as (batch, tokens), or a list of such shapes."
        )
    return shapes


@contextmanager
def watching(layers: Sequence[tuple[T, nn.Module]], note: Note[T]) -> Iterator[None]:
    """Call `note` after each product of these layers while this is open.

    Python looks `__call__` up on the class, so each layer gets one of its own.

    Args:
        layers (sequence): Pairs of an item, handed to ``note``, and its layer.
        note (callable): Gets (item, x, y).
    """
    with classes((m, _watched(type(m), item, note)) for item, m in layers):
        yield


@contextmanager
def entering(
    modules: Sequence[tuple[T, nn.Module]], calls: list[Call[T]]
) -> Iterator[None]:
    """Append each call of these modules to `calls` while this is open."""

    def entered(item: T, cls: Any) -> type[Any]:
        def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            calls.append((item, args, kwargs))
            return cls.__call__(self, *args, **kwargs)

        return type(cls.__name__, (cls,), {"__call__": watched})

    with classes((m, entered(item, type(m))) for item, m in modules):
        yield


@contextmanager
def returns(model: nn.Module, found: list[Any]) -> Iterator[None]:
    """Append what each call of this module returns to `found` while this is open."""
    cls: Any = type(model)

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(cls.__call__(self, *args, **kwargs))
        return found[-1]

    with classes([(model, type(cls.__name__, (cls,), {"__call__": watched}))]):
        yield


def _watched(cls: type[Any], item: T, note: Note[T]) -> type[Any]:
    name = product_method(cls)
    product = getattr(cls, name)

    def watched(self: nn.Module, x: mx.array) -> mx.array:
        y: mx.array = product(self, x)
        if not capturing():  # a block's program makes this product
            note(item, x, y)
        return y

    return type(cls.__name__, (cls,), {name: watched})
