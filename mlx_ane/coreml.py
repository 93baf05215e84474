"""Writes a tape as a function of a Core ML model.

Unlike the programs that the engine is given directly, weights are constants here,
inputs and outputs have the shapes, types and names of the caller, and integers may be
inputs: they select rows, are compared or become floats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_ane.builder import (
    FORMS,
    MAX_RANK,
    Builder,
    Emitted,
    Operand,
    Shape,
    Value,
    _check_range,
    _line,
    _names,
    _near,
    _tensor,
    four_axes,
    is_all,
    operand,
)
from mlx_ane.constants import (
    Constant,
    Quantised,
    Store,
    dense,
    encode,
    encode_quantised,
)
from mlx_ane.recognise import GRADIENTS, recognise
from mlx_ane.tape import Node, Tape, Unsupported
from mlx_ane.translate import PRIMITIVES, emit

__all__ = ["INNER", "FunctionText", "Port", "Settings", "write_function"]

#: Names that the builder gives.
INNER = re.compile(r"v\d+")

Array = npt.NDArray[Any]

#: Core ML has these operations on every chip; products with zeros and ones are not
#: needed there.
NATURAL = {"slice": "slice", "concat": "concat", "rsqrt": "rsqrt"}
#: Operations that give integers of integers.
INTEGER = frozenset(
    "reshape transpose slice_by_size slice_by_index concat identity add sub mul "
    "maximum minimum reduce_sum reduce_max".split()
)
#: Operations that give something else of integers.
OF_INTEGERS = frozenset(
    "reduce_argmax reduce_argmin cast gather gather_nd "
    "equal not_equal greater greater_equal less less_equal".split()
)


@dataclass(frozen=True)
class Port:
    """An input or output of the model."""

    name: str
    shape: Shape
    #: ``fp16``, ``fp32`` or ``int32``.
    dtype: str


@dataclass(frozen=True)
class Settings:
    """How weights are stored."""

    #: A name of `constants.WAYS`.
    way: str
    #: Version of the specification.
    version: int
    store: Store


@dataclass(frozen=True)
class FunctionText:
    """One function of a MIL program, and the weights that it computes with."""

    text: str
    #: The values of each weight as they are stored, by the tape's input.
    decoded: dict[str, Array]
    #: Weights that MLX quantised and that had to be written in fp16.
    widened: list[str]


def write_function(
    tape: Tape,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Mapping[str, Array | Quantised],
    settings: Settings,
) -> FunctionText:
    """Write a tape as one MIL function.

    Args:
        tape (Tape): Of MLX's primitives: what `lowered` returns.
        name (str): Of the function.
        inputs (Sequence[Port]): The model's, for the first inputs of the tape.
        outputs (Sequence[Port]): For the outputs of the tape.
        weights (Mapping[str, Array or Quantised]): The other inputs of the tape.
        settings (Settings): How these are stored.

    Raises:
        Unsupported: A primitive has no translation, or none for these arguments.
    """
    tape = recognise(tape, GRADIENTS)
    builder = CoreML(tape, inputs, outputs, weights, settings)
    emit(builder, TABLE)
    text = builder.function(name)
    return FunctionText(text, builder.decoded, builder.widened)


class CoreML(Builder):
    """Emits MIL for Core ML: constants in the place of ports."""

    def __init__(
        self,
        tape: Tape,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        weights: Mapping[str, Array | Quantised],
        settings: Settings,
    ) -> None:
        self.given, self.results = inputs, outputs
        self.weights, self.settings = weights, settings
        self.integers: set[str] = set()  # names of int32 values
        self.stored: dict[str, Constant] = {}  # by the name of its value
        self.taken = {port.name for port in (*inputs, *outputs)}
        self.sources: dict[str, str] = {}  # the weight behind a value
        self.decoded: dict[str, Array] = {}
        self.widened: list[str] = []
        super().__init__(tape, {k: v[0] for k, (v, _) in FORMS.items()} | NATURAL)

    # The tape's side.

    def _enter_inputs(self) -> None:
        for v, port in zip(self.tape.inputs, self.given, strict=False):
            if len(port.shape) > MAX_RANK:
                raise Unsupported(
                    "Input", f"{len(port.shape)} axes, {MAX_RANK} are the limit"
                )
            value, truth = Value(port.name, port.shape), self.tape.types[v].dtype
            if port.dtype == "fp32" or truth == mx.bool_:
                value = self.emit("cast", port.shape, x=value, dtype="fp16")
            elif port.dtype == "int32":
                self.integers.add(port.name)
            self.values[v] = self.reshape(value, four_axes(port.shape))
        for v in self.tape.inputs[len(self.given) :]:
            self.values[v] = self._weight(v)

    def _weight(self, v: str) -> Operand:
        given, path = self.weights[v], self.tape.paths.get(v, "")
        made = encode_quantised(given) if isinstance(given, Quantised) else None
        if made is None:
            if isinstance(given, Quantised):
                self.widened.append(path)
            array = dense(given).reshape(four_axes(given.shape))
            if array.size == 1 or array.dtype.kind != "f":
                return array.astype(np.float64)
            made = self.encode(array, array.ndim - 2)
        value = self.constant(made, path)
        self.sources[value.name] = v
        return value

    def encode(self, weight: Array, axis: int) -> Constant:
        """A weight as it is to be stored; each index of `axis` has its own scale."""
        _check_range(weight)
        return encode(weight, axis, self.settings.way, self.settings.version)

    def constant(
        self, made: Constant, path: str = "table", kind: str = "fp16"
    ) -> Value:
        """A constant of the program, named after where it came from."""
        base = re.sub(r"\W+", "_", path).strip("_")
        if not base or base[0].isdigit() or INNER.fullmatch(base):
            base = f"w_{base}"
        names = (f"{base}_{i}" if i else base for i in count())
        name = next(name for name in names if name not in self.taken)
        self.taken.add(name)
        shape = made.values.shape
        self.stored[name] = made
        self.lines.append(Emitted(name, _tensor(kind, shape), made.op, {}))
        return Value(name, shape)

    def array(self, v: str) -> Array:
        """The values of a weight or a table, in its own shape."""
        x, shape = self.values[v], self.tape.types[v].shape
        if isinstance(x, np.ndarray):
            return np.broadcast_to(x, self.shape(v)).reshape(shape)
        if x.name not in self.sources:
            raise Unsupported("Weight", "it must be one of the model's")
        return dense(self.weights[self.sources[x.name]]).reshape(shape)

    def is_integer(self, x: Any) -> bool:
        return isinstance(x, Value) and x.name in self.integers

    # The program's side.

    def emit(
        self, op: str, shape: Shape, kind: str = "fp16", /, **arguments: Any
    ) -> Value:
        given = [
            v
            for a in arguments.values()
            for v in (a if isinstance(a, (list, tuple)) else [a])
        ]
        if any(self.is_integer(v) for v in given):
            if op in INTEGER:
                kind = "int32"
            elif op not in OF_INTEGERS:
                raise Unsupported(op, "it has no form for integers")
        value = super().emit(op, shape, kind, **arguments)
        if kind == "int32":
            self.integers.add(value.name)
        return value

    def port(self, array: Array) -> Value:
        """A table as a constant of the program."""
        _check_range(array)
        table = array.astype(np.float16)
        key = ("table", table.shape, table.tobytes())
        if key not in self.known:
            self.known[key] = self.constant(
                Constant("const", {"val": ("fp16", table)}, table)
            )
        return self.known[key]

    def binary(self, op: str, x: Operand, y: Operand) -> Operand:
        if not (self.is_integer(x) or self.is_integer(y)):
            return super().binary(op, x, y)
        if (op in ("add", "sub") and is_all(y, 0)) or (op == "mul" and is_all(y, 1)):
            return x
        left, right = (self._whole(o) for o in self._same_rank(x, y))
        return self.emit(op, _broadcast_values(left, right), x=left, y=right)

    def sum(self, x: Operand, axis: int) -> Operand:
        if isinstance(x, Value) and self.is_integer(x):
            return self._reduce("reduce_sum", x, axis)
        return super().sum(x, axis)

    def indicator(self, op: str, x: Operand, y: Operand) -> Operand:
        """1 where the comparison holds, else 0."""
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return super().indicator(op, x, y)
        left: Any
        right: Any
        if self.is_integer(x) or self.is_integer(y):
            left, right = (self._whole(o) for o in self._same_rank(x, y))
        else:
            left, right = (self._number(_near(o)) for o in self._same_rank(x, y))
        shape = _broadcast_values(left, right)
        holds = self.emit(op, shape, "bool", x=left, y=right)
        return self.emit("cast", shape, x=holds, dtype="fp16")

    def _whole(self, x: Operand) -> Value | int:
        """An operand of an operation on integers."""
        if isinstance(x, np.ndarray) and x.size == 1 and x == x.astype(np.int32):
            return int(x.item())
        return self.whole(x)

    def whole(self, x: Operand) -> Value:
        """The operand as a tensor of integers."""
        if isinstance(x, Value):
            if not self.is_integer(x):
                raise Unsupported("AsType", "integers meet floats")
            return x
        array = x.astype(np.int32)
        if (array != x).any():
            raise Unsupported("AsType", "integers meet floats")
        key = ("integers", array.shape, array.tobytes())
        if key not in self.known:
            made = Constant("const", {"val": ("int32", array)}, array)
            self.known[key] = self.constant(made, "table", "int32")
            self.integers.add(self.known[key].name)
        return self.known[key]

    def function(self, name: str) -> str:
        """The finished function as MIL text."""
        values = [
            self._output(i, v, port)
            for i, (v, port) in enumerate(
                zip(self.tape.outputs, self.results, strict=True)
            )
        ]
        live = self._live([x.name for x in values])
        read = {n for line in live for n in _names(line)}
        names: dict[str, str] = {}
        for x, port in zip(values, self.results, strict=True):
            if INNER.fullmatch(x.name) and x.name not in read and x.name not in names:
                names[x.name] = port.name
            else:  # what is also read inside leaves through a copy
                kind = _tensor(port.dtype, port.shape)
                source = {"x": names.get(x.name, x.name)}
                live.append(Emitted(port.name, kind, "identity", source))
        body = "\n".join(f"    {self._text(line, names)}" for line in live)
        given = ", ".join(f"{_tensor(p.dtype, p.shape)} {p.name}" for p in self.given)
        returned = ", ".join(p.name for p in self.results)
        return f"  func {name}<ios18>({given}) {{\n{body}\n  }} -> ({returned});\n"

    def _output(self, index: int, v: str, port: Port) -> Value:
        whole = self.full(v)
        if isinstance(whole, np.ndarray):
            raise Unsupported("Output", f"output {index} does not depend on an input")
        x: Value = self.reshape(whole, port.shape)  # type: ignore[assignment]
        if (port.dtype == "int32") != self.is_integer(x):
            x = self.emit("cast", port.shape, port.dtype, x=x, dtype=port.dtype)
        elif port.dtype == "fp32":
            x = self.emit("cast", port.shape, "fp32", x=x, dtype="fp32")
        return x

    def _text(self, line: Emitted, names: Mapping[str, str]) -> str:
        made = self.stored.get(line.name)
        if made is None:
            return _line(line, names)
        if line.name in self.sources:
            v = self.sources[line.name]
            self.decoded[v] = made.values.reshape(self.tape.types[v].shape)
        store = self.settings.store
        operands = {k: store.literal(*v) for k, v in made.operands.items()}
        if made.op == "const":
            return _line(replace(line, literal=operands["val"]), names)
        return _line(replace(line, arguments=operands), names)


def _broadcast_values(*operands: Any) -> Shape:
    shapes = [o.shape for o in operands if isinstance(o, Value)]
    return tuple(np.broadcast_shapes(*shapes))


Emit = Callable[..., Any]
TABLE: dict[str, Emit] = {name: p.emit for name, p in PRIMITIVES.items()}
#: Primitives that need constants or integers, and so have no row in the table of
#: programs for the engine; what Core ML's operations are.
ROWS: dict[str, str] = {}


def row(*names: str, mil: str) -> Callable[[Emit], Emit]:
    """Enter a function into the table."""

    def enter(function: Emit) -> Emit:
        for name in names:
            TABLE[name], ROWS[name] = function, mil
        return function

    return enter


@row("Gather", mil="gather, gather_nd")
def _gather(b: CoreML, n: Node, x: Operand, *_: Operand) -> Operand:
    axes, sizes = n.arguments
    whole, part = (b.tape.types[v].shape for v in (n.inputs[0], n.outputs[0]))
    if tuple(sizes) != tuple(1 if i in axes else s for i, s in enumerate(whole)):
        raise Unsupported("Gather", "need whole rows")
    indices = [
        _indices(b, v, whole[a]) for v, a in zip(n.inputs[1:], axes, strict=True)
    ]
    rows = indices[0].shape[0]
    x = b.tensor(b.full(n.inputs[0]))
    if len(axes) > 1:  # the first axes: see tape.run
        columns = [b.whole(b.reshape(i, (rows, 1))) for i in indices]
        places = b.emit(
            "concat", (rows, len(axes)), values=columns, axis=1, interleave=False
        )
        y: Operand = b.emit(
            "gather_nd",
            (rows, *whole[len(axes) :]),
            x=b.reshape(x, whole),
            indices=places,
        )
        return b.reshape(y, four_axes(part))
    axis = b.axis(n.inputs[0], axes[0])
    shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
    y = b.emit("gather", shape, x=x, indices=b.whole(indices[0]), axis=axis)
    if axes[0]:  # the new axes come first
        y = b.transpose(y, [axis, *(i for i in range(len(shape)) if i != axis)])
    return b.reshape(y, four_axes(part))


def _indices(b: CoreML, v: str, size: int) -> Operand:
    """Indices of an axis of this size, flat."""
    index = b.full(v)
    if isinstance(index, np.ndarray):
        return index.ravel() % size
    if not b.is_integer(index):
        raise Unsupported("Gather", "the indices are computed from floats")
    return b.reshape(index, (int(np.prod(index.shape)),))


@row("Convolution", mil="conv")
def _convolution(b: CoreML, n: Node, x: Operand, _: Operand) -> Operand:
    stride, low, high, kernel, dilation, groups, flip = n.arguments
    if flip or any(d != 1 for d in dilation):
        raise Unsupported("Convolution", "it is transposed")
    weight, rank = b.array(n.inputs[1]), len(stride)  # (O, [h,] w, I / groups)
    if rank > 2:
        raise Unsupported("Convolution", "it has more than two axes of places")
    if rank == 1:
        weight = weight[:, None]
    batch, *places, channels = b.tape.types[n.inputs[0]].shape
    out = b.tape.types[n.outputs[0]].shape  # (B, [H,] W, O)
    one = [1] * (2 - rank)
    x = b.tensor(b.reshape(b.full(n.inputs[0]), (batch, *one, *places, channels)))
    x = b.transpose(x, (0, 3, 1, 2))
    pairs = zip([*[0] * len(one), *low], [*[0] * len(one), *high], strict=True)
    made = b.encode(weight.transpose(0, 3, 1, 2), 0)
    filters = b.constant(made, b.tape.paths.get(n.inputs[1], "kernel"))
    b.decoded[n.inputs[1]] = made.values.transpose(0, 2, 3, 1).reshape(
        b.tape.types[n.inputs[1]].shape
    )
    y: Operand = b.emit(
        "conv",
        (batch, out[-1], *one, *out[1:-1]),
        x=x,
        weight=filters,
        strides=[*one, *stride],
        pad_type="custom",
        pad=[p for pair in pairs for p in pair],
        dilations=[*one, *kernel],
        groups=groups,
    )
    return b.reshape(b.transpose(y, (0, 2, 3, 1)), four_axes(out))


@row("ArgReduce", mil="reduce_argmax, reduce_argmin")
def _arg_reduce(b: CoreML, n: Node, x: Operand) -> Operand:
    kind, axis = n.arguments
    axis = b.axis(n.inputs[0], axis)
    x = b.tensor(b.full(n.inputs[0]))
    shape = tuple(1 if i == axis else s for i, s in enumerate(x.shape))
    op = "reduce_argmax" if kind else "reduce_argmin"
    return b.emit(op, shape, "int32", x=x, axis=axis, keep_dims=True)


@row("AsType", mil="cast, not_equal")
def _astype(b: CoreML, n: Node, x: Operand) -> Operand:
    before, after = (b.tape.types[v].dtype for v in (n.inputs[0], n.outputs[0]))
    if not b.is_integer(x):
        return PRIMITIVES["AsType"].emit(b, n, x)
    if after == mx.bool_ and before != mx.bool_:
        return b.indicator("not_equal", x, operand(0.0))
    if mx.issubdtype(after, mx.floating):
        return b.emit("cast", x.shape, x=x, dtype="fp16")
    return x
