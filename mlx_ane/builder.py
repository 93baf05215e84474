"""Emits MIL operations for the values of a tape: ports, constants, text.

Where reports about an operation conflict there are several *forms* of it (`FORMS`),
and the caller chooses; the first of each passes `mil.check` for M1 to M6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_ane import mil
from mlx_ane.recognise import FAR
from mlx_ane.tape import Tape, Unsupported

__all__ = ["FORMS", "Builder", "Operand", "Part", "Port", "Program", "Result", "Value"]

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

#: Ways to write an operation, the most portable first, and why there are several.
FORMS: dict[str, tuple[tuple[str, ...], str]] = {
    "concat": (("matmul", "concat"), "concat is disputed"),
    "slice": (("matmul", "slice"), "before M4 wrong at a last-axis offset past 4094"),
    "sum": (("matmul", "reduce_sum"), "a matmul with ones accumulates widely"),
    "max": (("reduce_max", "tree"), "reduce_max has no report"),
    "maximum": (("maximum", "abs"), "maximum has no report"),
    "rsqrt": (("pow", "sqrt", "rsqrt"), "rsqrt is disputed"),
    "sigmoid": (("sigmoid", "tanh", "exp"), "a table of 33 points"),
    "compare": (("select", "sign"), "boolean tensors have no report"),
    "select": (("arithmetic", "select"), "boolean tensors have no report"),
    "weights": (("ports", "rows"), "some machines take two inputs only"),
}
MIN_WIDTH = 32  # below, a row of a port is zeros or garbage
MAX_RANK = 5


@dataclass(frozen=True)
class Value:
    """A MIL tensor of four or five axes, 1 where the tape's value is broadcast."""

    name: str
    shape: Shape


#: An array is a constant: folded, a number in the text, or a port of its own.
Operand = Value | Array


@dataclass(frozen=True)
class Part:
    """Where an input of the tape lies in a port."""

    #: Index into the inputs.
    source: int
    #: Shape of the input.
    shape: Shape
    #: First row of the port, if several inputs share it.
    row: int = 0
    #: Whether the port holds the transpose.
    transposed: bool = False


@dataclass(frozen=True)
class Port:
    """An input of the program: parts of the tape's inputs, or a fixed table."""

    name: str
    shape: Shape
    parts: tuple[Part, ...] = ()
    table: Array | None = None


@dataclass(frozen=True)
class Result:
    """An output of the program; columns past `shape` are padding."""

    name: str
    #: Shape in the program.
    port: Shape
    #: Shape in the tape.
    shape: Shape


@dataclass(frozen=True)
class Program:
    """A MIL program and what goes in and out of it."""

    mil: mil.Program
    ports: list[Port]
    results: list[Result]

    def text(self, dialect: str | None = None) -> str:
        """MIL text: dialect "ios16" or "ios18"."""
        return self.mil.text(dialect)

    def pack(self, arrays: Sequence[Array]) -> dict[str, Array]:
        """The ports' fp16 contents for the tape's inputs."""
        return {port.name: _packed(port, arrays) for port in self.ports}

    def unpack(self, outputs: Mapping[str, Array]) -> list[Array]:
        """The tape's outputs, float32, from those of the program."""
        return [
            outputs[r.name][..., : four_axes(r.shape)[-1]]
            .astype(np.float32)
            .reshape(r.shape)
            for r in self.results
        ]


def _packed(port: Port, arrays: Sequence[Array]) -> Array:
    if port.table is not None:
        return port.table
    surface = np.zeros(port.shape, np.float16)
    for part in port.parts:
        array = np.asarray(arrays[part.source])
        array = array.T if part.transposed else array
        if len(port.parts) > 1:
            rows = array.reshape(-1, port.shape[-1])
            surface[0, 0, part.row : part.row + len(rows)] = rows
        else:
            array = array.reshape(four_axes(array.shape))
            surface[..., : array.shape[-1]] = array
    return surface


def four_axes(shape: Shape) -> Shape:
    """At least four axes."""
    return (1,) * (4 - len(shape)) + tuple(shape)


@dataclass(frozen=True)
class Emitted:
    """One line of the program."""

    name: str
    type: str
    op: str
    arguments: dict[str, str]
    literal: str = ""


class Builder:
    """Emits MIL operations, and knows which value each tape value has become."""

    def __init__(self, tape: Tape, forms: Mapping[str, str]) -> None:
        self.tape, self.forms = tape, forms
        self.lines: list[Emitted] = []
        self.known: dict[Any, Value] = {}  # by what made it
        self.turned: dict[str, Value] = {}  # transposes of the last two axes
        self.ports: list[Port] = []
        self.values: dict[str, Operand] = {
            v: np.array(a.astype(mx.float32)).reshape(four_axes(a.shape))
            for v, a in tape.constants.items()
        }
        self._enter_inputs()

    # The tape's side.

    def shape(self, value: str) -> Shape:
        """A tape value's shape in at least four axes."""
        return four_axes(self.tape.types[value].shape)

    def axis(self, value: str, axis: int) -> int:
        """The axis in at least four."""
        rank = len(self.tape.types[value].shape)
        return axis % rank + len(self.shape(value)) - rank

    def full(self, value: str) -> Operand:
        """A tape value at its full shape, not broadcast."""
        x, shape = self.values[value], self.shape(value)
        if isinstance(x, np.ndarray):
            return np.broadcast_to(x, shape)
        if x.shape == shape:
            return x
        # Not by mul with ones: see `_mul`.
        zeros = np.zeros(
            [1 if a == b else b for a, b in zip(x.shape, shape, strict=True)]
        )
        return self.tensor(self.emit("add", shape, x=x, y=self.port(zeros)))

    def _enter_inputs(self) -> None:
        shapes = [self.tape.types[v].shape for v in self.tape.inputs]
        rows = self._shared_rows(shapes) if self.forms["weights"] == "rows" else []
        shared = {part.source for part in rows}
        for i, (v, shape) in enumerate(zip(self.tape.inputs, shapes, strict=True)):
            if i not in shared:
                self.values[v] = self._input("w" if i else "x", Part(i, shape))
        if rows:
            width = shapes[0][-1]
            ends = [part.row + math.prod(part.shape) // width for part in rows]
            port = self._port("r", (1, 1, ends[-1], width), tuple(rows))
            for part, end in zip(rows, ends, strict=True):
                x = self.cut(port, 2, range(part.row, end))
                x = self.transpose(x, (0, 1, 3, 2)) if part.transposed else x
                self.values[self.tape.inputs[part.source]] = x

    def _shared_rows(self, shapes: Sequence[Shape]) -> list[Part]:
        """Vectors and matrices as wide as the first input, perhaps transposed."""
        rows, at, width = [], 0, shapes[0][-1] if shapes[0] else 0
        for i, shape in enumerate(shapes):
            turned = len(shape) == 2 and shape[1] != width == shape[0]
            if i and len(shape) in (1, 2) and (turned or shape[-1] == width):
                rows.append(Part(i, shape, at, turned))
                at += math.prod(shape) // width
        return rows

    def _input(self, letter: str, part: Part) -> Value:
        shape = four_axes(part.shape)
        if len(shape) > MAX_RANK:
            raise Unsupported("Input", f"{len(shape)} axes, {MAX_RANK} are the limit")
        wide = (*shape[:-1], max(shape[-1], MIN_WIDTH))
        return self.cut(self._port(letter, wide, (part,)), -1, range(shape[-1]))

    def _port(
        self, letter: str, shape: Shape, parts: tuple[Part, ...] = (), table: Any = None
    ) -> Value:
        name = f"a{len(self.ports):03d}_{letter}"
        self.ports.append(Port(name, shape, parts, table))
        return Value(name, shape)

    # The program's side.

    def emit(
        self, op: str, shape: Shape, kind: str = "fp16", /, **arguments: Any
    ) -> Value:
        """Emit ``op(arguments)``: values, or constants by their Python types."""
        if len(shape) > MAX_RANK:
            raise Unsupported(op, f"{len(shape)} axes, {MAX_RANK} are the limit")
        given = {k: self._argument(v) for k, v in sorted(arguments.items())}
        key = (op, tuple(given.items()), shape, kind)
        if key not in self.known:
            name = f"v{len(self.lines)}"
            self.lines.append(Emitted(name, _tensor(kind, shape), op, given))
            self.known[key] = Value(name, shape)
        return self.known[key]

    def _argument(self, value: Any) -> str:
        if isinstance(value, Value):
            return value.name
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Value):
            return "(" + ", ".join(v.name for v in value) + ")"
        if isinstance(value, bool):
            kind, literal = "bool", f"bool({str(value).lower()})"
        elif isinstance(value, int):
            kind, literal = "int32", f"int32({value})"
        elif isinstance(value, str):
            kind, literal = "string", f'string("{value}")'
        elif isinstance(value, (list, tuple)):
            kind = _tensor("int32", (len(value),))
            literal = f"{kind}([{', '.join(map(str, value))}])"
        else:
            kind, literal = "fp16", f"fp16({float(np.float16(value)).hex()})"
        key = (kind, literal)
        if key not in self.known:
            name = f"v{len(self.lines)}"
            self.lines.append(Emitted(name, kind, "const", {}, literal))
            self.known[key] = Value(name, ())
        return self.known[key].name

    def port(self, array: Array) -> Value:
        """A table as an input of the program."""
        _check_range(array)
        table = array.astype(np.float16)
        key = ("table", table.shape, table.tobytes())
        if key not in self.known:
            width = table.shape[-1]
            wide = np.zeros((*table.shape[:-1], max(width, MIN_WIDTH)), np.float16)
            wide[..., :width] = table
            port = self._port("t", wide.shape, table=wide)
            self.known[key] = self.cut(port, -1, range(width))
        return self.known[key]

    def tensor(self, x: Operand) -> Value:
        """The operand as a tensor: a constant becomes a port."""
        if isinstance(x, Value):
            return x
        for axis in range(x.ndim - 1):  # undo broadcasts
            before = (slice(None),) * axis
            first, second = x[(*before, slice(1))], x[(*before, slice(1, 2))]
            if (first == second).all() and (x == first).all():
                x = first
        return self.port(x)

    def binary(self, op: str, x: Operand, y: Operand) -> Operand:
        """An elementwise operation; constants are computed here."""
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            with np.errstate(all="ignore"):
                return np.asarray(_NUMPY[op](x, y))
        zero_x, zero_y = is_all(x, 0), is_all(y, 0)
        if (op == "add" and zero_x) or (op == "mul" and is_all(x, 1)):
            return y
        if (op in ("add", "sub") and zero_y) or (
            op in ("mul", "real_div") and is_all(y, 1)
        ):
            return x
        if op == "sub" and isinstance(x, Value) and isinstance(y, Value) and x == y:
            return np.zeros((1,) * 4)
        if op in ("mul", "real_div") and (zero_x or (zero_y and op == "mul")):
            return np.zeros((1,) * 4)
        if op == "real_div" and isinstance(y, np.ndarray):
            return self.binary("mul", x, 1 / y)
        if op in ("add", "sub", "maximum", "minimum"):
            x, y = _near(x), _near(y)
        x, y = self._same_rank(x, y)
        shape = _broadcast(x, y)
        left, right = self._number(x), self._number(y)
        if op == "mul" and isinstance(left, Value) and isinstance(right, Value):
            return self._mul(left, right, shape)
        return self.emit(op, shape, x=left, y=right)

    def _mul(self, x: Value, y: Value, shape: Shape) -> Operand:
        """x * y; mul fails where an operand is repeated along the first axis."""
        if x.shape[0] == y.shape[0]:
            return self.emit("mul", shape, x=x, y=y)
        large, small = (x, y) if y.shape[0] == 1 else (y, x)
        if small.shape[1] == 1:  # the first two axes are one axis to it
            merged = (1, large.shape[0] * large.shape[1], *large.shape[2:])
            out = (1, shape[0] * shape[1], *shape[2:])
            product = self.emit("mul", out, x=self.reshape(large, merged), y=small)
            return self.reshape(product, shape)
        zeros = self.port(np.zeros((large.shape[0], *[1] * (len(shape) - 1))))
        whole = (large.shape[0], *small.shape[1:])
        return self.emit(
            "mul", shape, x=large, y=self.emit("add", whole, x=small, y=zeros)
        )

    def _number(self, x: Operand) -> Value | float:
        if isinstance(x, np.ndarray) and x.size == 1:
            _check_range(x)
            number = float(x.item())
            if number and abs(number) < 2.0**-24:
                raise Unsupported("Constant", f"{number} is below fp16's range")
            return number
        return self.tensor(x)

    def _same_rank(self, *operands: Operand) -> list[Operand]:
        rank = max(len(x.shape) for x in operands if not is_number(x))
        return [
            x
            if is_number(x) or len(x.shape) == rank
            else self.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)
            for x in operands
        ]

    def add(self, x: Operand, y: Operand | float) -> Operand:
        return self.binary("add", x, operand(y))

    def sub(self, x: Operand | float, y: Operand) -> Operand:
        return self.binary("sub", operand(x), y)

    def mul(self, x: Operand, y: Operand | float) -> Operand:
        return self.binary("mul", x, operand(y))

    def divide(self, x: Operand | float, y: Operand) -> Operand:
        return self.binary("real_div", operand(x), y)

    def unary(self, op: str, x: Operand, **arguments: Any) -> Operand:
        if isinstance(x, np.ndarray) and op in _NUMPY:
            with np.errstate(all="ignore"):
                return np.asarray(_NUMPY[op](x))
        x = self.tensor(x)
        return self.emit(op, x.shape, x=x, **arguments)

    def maximum(self, x: Operand, y: Operand | float) -> Operand:
        y = operand(y)
        if self.forms["maximum"] == "maximum" or not isinstance(x, Value):
            return self.binary("maximum", x, y)
        x, y = self.mul(x, 0.5), self.mul(y, 0.5)
        return self.add(self.add(x, y), self.unary("abs", self.binary("sub", x, y)))

    def reshape(self, x: Operand, shape: Shape) -> Operand:
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        return x if x.shape == shape else self.emit("reshape", shape, x=x, shape=shape)

    def transpose(self, x: Operand, perm: Sequence[int]) -> Operand:
        if isinstance(x, np.ndarray):
            return x.transpose(perm)
        shape = tuple(x.shape[p] for p in perm)
        moved = [p for p in perm if x.shape[p] != 1]
        if moved == sorted(moved):  # only axes of one element move
            return self.reshape(x, shape)
        swap = (*range(len(perm) - 2), len(perm) - 1, len(perm) - 2)
        if tuple(perm) == swap and x.name in self.turned:
            return self.turned[x.name]
        y = self.emit("transpose", shape, x=x, perm=tuple(perm))
        if tuple(perm) == swap:
            self.turned[y.name] = x
        return y

    def matmul(self, x: Operand, y: Operand, across: bool = False) -> Value:
        """x @ y, or x @ y.T; a transpose of the last two axes costs nothing."""
        x, y = (self.tensor(o) for o in self._same_rank(self.tensor(x), self.tensor(y)))
        left, right = self.turned.get(x.name), self.turned.get(y.name)
        if across:
            right = None if right else y
        columns = y.shape[-2 if across else -1]
        batch = _broadcast_shapes(x.shape[:-2], y.shape[:-2])
        return self.emit(
            "matmul",
            (*batch, x.shape[-2], columns),
            x=left or x,
            y=right or (self.turned[y.name] if across else y),
            transpose_x=left is not None,
            transpose_y=right is not None,
        )

    def along(self, x: Operand, axis: int, matrix: Array) -> Operand:
        """The product of a (new, old) matrix of constants with one axis of x."""
        x = self.tensor(x)
        rank = len(x.shape)
        axis %= rank
        table = self.port(matrix.reshape(four_axes(matrix.shape)))
        if axis == rank - 1:
            return self.matmul(x, table, across=True)
        perm = list(range(rank))
        perm[axis], perm[-2] = perm[-2], perm[axis]
        return self.transpose(self.matmul(table, self.transpose(x, perm)), perm)

    def cut(self, x: Any, axis: int, kept: range) -> Any:
        """Some elements of one axis."""
        axis %= len(x.shape)
        if isinstance(x, np.ndarray):
            return x if x.shape[axis] == 1 else x.take(list(kept), axis)
        size = x.shape[axis]
        if kept == range(size):
            return x
        last = axis == len(x.shape) - 1
        if kept.step < 0 or (last and kept.start and self.forms["slice"] == "matmul"):
            return self.along(x, axis, np.eye(size)[list(kept)])
        begin = [kept.start if i == axis else 0 for i in range(len(x.shape))]
        shape = tuple(len(kept) if i == axis else n for i, n in enumerate(x.shape))
        if kept.step == 1:
            return self.emit("slice_by_size", shape, x=x, begin=begin, size=shape)
        if last and self.forms["slice"] == "matmul":
            return self.along(x, axis, np.eye(size)[list(kept)])
        end = [kept[-1] + 1 if i == axis else n for i, n in enumerate(x.shape)]
        stride = [kept.step if i == axis else 1 for i in range(len(x.shape))]
        return self.emit(
            "slice_by_index", shape, x=x, begin=begin, end=end, stride=stride
        )

    def put(self, x: Operand, axis: int, at: range, size: int) -> Operand:
        """Zeros, with x at some elements of one axis."""
        return self.along(x, axis, np.eye(size)[:, list(at)])

    def sum(self, x: Operand, axis: int) -> Operand:
        """The sum over one axis, which stays with one element."""
        if isinstance(x, np.ndarray):
            return x.sum(axis, keepdims=True)
        if self.forms["sum"] == "matmul":
            return self.along(x, axis, np.ones((1, x.shape[axis])))
        return self._reduce("reduce_sum", x, axis)

    def max(self, x: Operand, axis: int) -> Operand:
        """The maximum over one axis, which stays with one element."""
        if isinstance(x, np.ndarray):
            return x.max(axis, keepdims=True)
        if self.forms["max"] == "reduce_max":
            return self._reduce("reduce_max", x, axis)
        y: Operand = x
        while (size := y.shape[axis]) > 1:
            half = -(-size // 2)  # an odd middle is compared with itself
            low, high = range(half), range(size - half, size)
            y = self.maximum(self.cut(y, axis, low), self.cut(y, axis, high))
        return y

    def _reduce(self, op: str, x: Value, axis: int) -> Value:
        shape = tuple(
            1 if i == axis % len(x.shape) else n for i, n in enumerate(x.shape)
        )
        return self.emit(op, shape, x=x, axes=(axis % len(x.shape),), keep_dims=True)

    def indicator(self, op: str, x: Operand, y: Operand) -> Operand:
        """1 where the comparison holds, else 0."""
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return np.asarray(_NUMPY[op](x, y), np.float64)
        x, y = _near(x), _near(y)
        if self.forms["compare"] == "select":
            x, y = self._same_rank(x, y)
            shape = _broadcast(x, y)
            holds = self.emit(op, shape, "bool", x=self._number(x), y=self._number(y))
            return self.emit("select", shape, cond=holds, a=1.0, b=0.0)
        if op in ("less", "greater_equal"):
            x, y = y, x
        sign = self.unary("sign", self.binary("sub", x, y))
        if op in ("equal", "not_equal"):
            differs = self.unary("abs", sign)
            return differs if op == "not_equal" else self.sub(1.0, differs)
        above = self.unary("relu", sign)
        return above if op in ("less", "greater") else self.sub(1.0, above)

    def choose(self, where: Operand, x: Operand, y: Operand) -> Operand:
        """x where the indicator is 1, y where it is 0."""
        x, y = _near(x), _near(y)
        if self.forms["select"] == "select" and isinstance(where, Value):
            where, x, y = self._same_rank(where, x, y)
            cond = self.emit(
                "not_equal", self.tensor(where).shape, "bool", x=where, y=0.0
            )
            shape = _broadcast(where, x, y)
            return self.emit(
                "select", shape, cond=cond, a=self._number(x), b=self._number(y)
            )
        return self.add(self.mul(x, where), self.mul(y, self.sub(1.0, where)))

    # The text.

    def program(self) -> Program:
        """The finished program."""
        values = [self._result(v, i) for i, v in enumerate(self.tape.outputs)]
        live = self._live([v.name for v in values])
        read = [a for line in live for a in _names(line)]
        names, results = {}, []
        for i, (v, value) in enumerate(zip(self.tape.outputs, values, strict=True)):
            name = f"o{i:03d}"
            results.append(Result(name, value.shape, self.tape.types[v].shape))
            own = value.name.startswith("v") and value.name not in names
            if own and value.name not in read:
                names[value.name] = name
                continue
            # What is also read inside leaves through a copy; a sole identity is NaN.
            arguments = {"x": value.name}
            if len(values) == 1:
                arguments["y"] = self._argument(1.0)
                live = [n for n in self.lines if n in live or n.name == arguments["y"]]
            op = "mul" if len(values) == 1 else "identity"
            live.append(Emitted(name, _tensor("fp16", value.shape), op, arguments))
        used = {a for line in live for a in _names(line)}
        ports = [p for p in self.ports if p.name in used]
        inputs = ", ".join(f"{_tensor('fp16', p.shape)} {p.name}" for p in ports)
        body = "\n".join(f"    {_line(line, names)}" for line in live)
        outputs = ", ".join(r.name for r in results)
        text = (
            "program(1.3)\n{\n"
            f"  func main<ios18>({inputs}) {{\n{body}\n  }} -> ({outputs});\n}}\n"
        )
        return Program(mil.parse(text), ports, results)

    def _result(self, value: str, index: int) -> Value:
        x, shape = self.full(value), self.shape(value)
        if isinstance(x, np.ndarray):
            raise Unsupported("Output", f"output {index} does not depend on an input")
        x = self.reshape(x, shape)
        if shape[-1] < MIN_WIDTH:
            x = self.put(x, -1, range(shape[-1]), MIN_WIDTH)
        return self.tensor(x)

    def _live(self, wanted: list[str]) -> list[Emitted]:
        reached, live = set(wanted), []
        for line in reversed(self.lines):
            if line.name in reached:
                live.append(line)
                reached.update(_names(line))
        return live[::-1]


def _names(line: Emitted) -> list[str]:
    return [n for a in line.arguments.values() for n in a.strip("()").split(", ")]


def _line(line: Emitted, renamed: Mapping[str, str]) -> str:
    name = renamed.get(line.name, line.name)
    arguments = ", ".join(f"{k} = {v}" for k, v in line.arguments.items())
    value = f", val = {line.literal}" if line.literal else ""
    return (
        f'{line.type} {name} = {line.op}({arguments})[name = string("{name}"){value}];'
    )


def _tensor(kind: str, shape: Shape) -> str:
    return f"tensor<{kind}, [{', '.join(map(str, shape))}]>"


def _near(x: Operand) -> Operand:
    """Infinity, and what stands for it in masks, as a number that fp16 can add."""
    if isinstance(x, Value) or (np.abs(x) <= 60000).all():
        return x
    return np.where(np.abs(x) > 60000, np.sign(x) * -FAR, x)


def _check_range(array: Array) -> None:
    largest = np.abs(array).max(initial=0)
    if not largest <= 65504:
        raise Unsupported("Constant", f"{largest} is past fp16's range")


def operand(x: Operand | float) -> Operand:
    return np.full((1, 1, 1, 1), x) if isinstance(x, (int, float)) else x


def is_number(x: Operand) -> bool:
    return isinstance(x, np.ndarray) and x.size == 1


def is_all(x: Operand, number: float) -> bool:
    return isinstance(x, np.ndarray) and bool((x == number).all())


def _broadcast(*operands: Operand) -> Shape:
    return _broadcast_shapes(*(x.shape for x in operands if not is_number(x)))


def _broadcast_shapes(*shapes: Shape) -> Shape:
    return tuple(np.broadcast_shapes(*shapes))


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "exp": np.exp,
    "tanh": np.tanh,
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "log": np.log,
    "relu": lambda x: np.maximum(x, 0),
}
