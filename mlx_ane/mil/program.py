"""MIL programs as Python values: functions, operations and constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_ane.mil._dtypes import from_bytes


@dataclass(frozen=True)
class Value:
    """A named, typed value: an input, or an output of an operation."""

    name: str
    #: MIL's name of the element type, for example ``fp16``.
    dtype: str
    #: Sizes of the axes; -1 where the text has ``?``.
    shape: tuple[int, ...]
    #: A ``state<...>`` input, which the program may also write.
    state: bool = False
    #: Strides in elements of a ``tensor_buffer<...>``, whose layout the text gives.
    strides: tuple[int, ...] | None = None
    #: Elements of each axis that lie side by side in a ``tensor_buffer<...>``.
    interleave_factors: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Blob:
    """Where a constant lies: a weight file and the offset of its chunk."""

    path: str
    offset: int


@dataclass(frozen=True)
class Constant:
    """A literal, or a constant in a weight file."""

    dtype: str
    shape: tuple[int, ...]
    #: An array of `shape` (sub-byte types as uint8 or int8, bf16 as uint16 bits), a
    #: list of strings, or a `Blob`.
    value: npt.NDArray[Any] | list[str] | Blob


#: A name of a value, a constant written in place, or a tuple of these.
Argument = Any


class Operation:
    """``outputs = op(inputs)[attributes]``, or ``op<opset>(inputs)``."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @cached_property
    def op(self) -> str:
        """Name of the operation, for example ``matmul``."""
        return str(self._handle.op)

    @property
    def opset(self) -> str:
        """The opset that the text gives this operation, or ""."""
        return str(self._handle.opset)

    @cached_property
    def name(self) -> str:
        """The ``name`` among the attributes, or ""."""
        return str(self._handle.name)

    @cached_property
    def inputs(self) -> dict[str, Argument]:
        """Arguments by their names."""
        return {name: _argument(a) for name, a in self._handle.inputs.items()}

    @cached_property
    def attributes(self) -> dict[str, Constant]:
        """What stands in the bracket; of a const, its ``val`` too."""
        return {name: _constant(c) for name, c in self._handle.attributes.items()}

    @cached_property
    def outputs(self) -> list[Value]:
        """The values that it defines."""
        return [_value(v) for v in self._handle.outputs]

    @property
    def line(self) -> int:
        """1-based line of the text."""
        return int(self._handle.line)

    def __repr__(self) -> str:
        outputs = ", ".join(value.name for value in self.outputs)
        return f"<mlx_ane.mil.Operation {outputs or 'nothing'} = {self.op}>"


@dataclass(frozen=True)
class Function:
    """One function of a program."""

    name: str
    opset: str
    inputs: list[Value]
    operations: list[Operation]
    #: Names of the values that it returns.
    outputs: list[str]


class Program:
    """A MIL program; `mlx_ane.mil.parse` makes one."""

    def __init__(self, handle: Any) -> None:
        #: The program of the extension module.
        self.handle = handle

    @property
    def version(self) -> str:
        """Version of the text, for example ``1.3``."""
        return str(self.handle.version)

    @property
    def dialect(self) -> str:
        """``ios16`` (verbose scalars) or ``ios18`` (shorthand), by the version."""
        return str(self.handle.dialect)

    @property
    def build_info(self) -> dict[str, str]:
        """The ``buildInfo`` of the text."""
        return dict(self.handle.build_info)

    @cached_property
    def functions(self) -> list[Function]:
        """Functions in the order of the text."""
        return [
            Function(
                f.name,
                f.opset,
                [_value(v) for v in f.inputs],
                [Operation(op) for op in f.operations],
                list(f.outputs),
            )
            for f in self.handle.functions
        ]

    def text(self, dialect: str | None = None) -> str:
        """Write the program.

        Args:
            dialect (str, optional): ``ios16`` or ``ios18``; the program's own if
                None.

        Returns:
            str: Text that parses to an equal program.

        Raises:
            ValueError: An unknown dialect, or an operation, a state or a layout that
                ``ios16`` does not have.
        """
        return str(self.handle.text(self.dialect if dialect is None else dialect))

    def __eq__(self, other: object) -> bool:
        """Equal in meaning: the dialect (version, opsets and forms of scalars), places
        and the order of arguments do not count."""
        if not isinstance(other, Program):
            return NotImplemented
        return bool(self.handle.same_meaning(other.handle))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = ", ".join(f.name for f in self.functions)
        return f"<mlx_ane.mil.Program {self.dialect}: {names}>"


def _value(value: Any) -> Value:
    return Value(
        value.name,
        value.dtype,
        value.shape,
        value.state,
        value.strides,
        value.interleave_factors,
    )


def _constant(constant: Any) -> Constant:
    shape = tuple(constant.shape)
    elements = constant.elements
    value: npt.NDArray[Any] | list[str] | Blob
    if elements is None:
        value = Blob(*constant.blob)
    elif isinstance(elements, bytes):
        value = np.asarray(from_bytes(elements, constant.dtype)).reshape(shape)
    else:
        value = list(elements)
    return Constant(constant.dtype, shape, value)


def _argument(argument: Any) -> Argument:
    if isinstance(argument, str):
        return argument
    if isinstance(argument, tuple):
        return tuple(_argument(item) for item in argument)
    return _constant(argument)
