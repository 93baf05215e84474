"""A captured MLX function as a list of primitives, and running it in MLX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

__all__ = ["LAYOUT", "Node", "Tape", "Type", "Unsupported"]


class Unsupported(NotImplementedError):
    """A function that cannot be an engine program.

    Attributes:
        primitive: Name of MLX's primitive that has no translation.
        near: Path of the parameter nearest to it, or "".
    """

    def __init__(self, primitive: str, why: str, near: str = "") -> None:
        place = f" near {near}" if near else ""
        super().__init__(f"[mlx_ane.translate] {primitive}{place}: {why}.")
        self.primitive, self.why, self.near = primitive, why, near


@dataclass(frozen=True)
class Type:
    """Shape and dtype of a value."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """``outputs = name[arguments](inputs)``, values by name."""

    name: str
    arguments: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Tape:
    """Nodes in an order in which they can run."""

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    constants: dict[str, mx.array]
    types: dict[str, Type]
    #: Where each input came from, such as "0.self_attn.q_proj.weight".
    paths: dict[str, str] = field(default_factory=dict)

    def producers(self) -> dict[str, Node]:
        """The node behind each value."""
        return {v: node for node in self.nodes for v in node.outputs}

    def like(self, value: str, of: Type) -> str:
        """A new value, named after another."""
        name = f"{value}_{len(self.types)}"
        self.types[name] = of
        return name

    def live(
        self, outputs: Iterable[str] | None = None, inputs: Iterable[str] | None = None
    ) -> Tape:
        """The part that `outputs` need; it starts at `inputs`."""
        needed = list(self.outputs if outputs is None else outputs)
        given = set(self.inputs if inputs is None else inputs)
        reached, nodes = set(needed), []
        for node in reversed(self.nodes):
            if any(v in reached and v not in given for v in node.outputs):
                nodes.append(node)
                reached.update(node.inputs)
        return replace(
            self,
            inputs=list(self.inputs if inputs is None else inputs),
            outputs=needed,
            nodes=nodes[::-1],
            constants={v: a for v, a in self.constants.items() if v in reached},
        )

    def reached_from(self, values: Iterable[str]) -> set[str]:
        """All values that depend on `values`."""
        reached = set(values)
        for node in self.nodes:
            if not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
        return reached

    def run(self, *arrays: mx.array) -> list[mx.array]:
        """The function itself, of MLX ops on the default stream.

        Raises:
            Unsupported: A primitive is not in the table below.
        """
        env = {**self.constants, **dict(zip(self.inputs, arrays, strict=True))}
        for node in self.nodes:
            if node.name not in _MLX:
                raise Unsupported(node.name, "it cannot be run again", self.near(node))
            results = _MLX[node.name](
                [env[v] for v in node.inputs],
                node.arguments,
                self.types[node.outputs[0]],
            )
            if isinstance(results, mx.array):
                results = [results]
            env.update(zip(node.outputs, results, strict=True))
        return [env[v] for v in self.outputs]

    def near(self, node: Node) -> str:
        """Path of a parameter that the node, or what feeds it, reads; or ""."""
        producers = self.producers()
        queue, seen = list(node.inputs), set(node.inputs)
        for value in queue:
            path = self.paths.get(value, "")
            if "." in path:
                return path
            above = producers[value].inputs if value in producers else ()
            queue += [v for v in above if v not in seen]
            seen.update(above)
        return ""


#: Primitives that only rearrange or relabel their operand.
LAYOUT = frozenset(
    "Broadcast BroadcastAxes Reshape Flatten Unflatten ExpandDims Squeeze Transpose "
    "AsType StopGradient Copy Contiguous".split()
)

# How MLX runs each primitive again: (operands, arguments, type of the output).
Run = Callable[[list[mx.array], tuple[Any, ...], Type], "mx.array | list[mx.array]"]
_MLX: dict[str, Run] = {}


def run_as(*names: str) -> Callable[[Run], Run]:
    """Enter a function into the table of what MLX runs for a primitive."""

    def enter(run: Run) -> Run:
        _MLX.update(dict.fromkeys(names, run))
        return run

    return enter


def _elementwise(function: Callable[..., mx.array]) -> Run:
    return lambda x, _, __: function(*x)


for _name in (
    "Abs Add ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTan2 ArcTanh Ceil Cos Cosh Divide "
    "DivMod Equal Erf ErfInv Exp Expm1 Floor Greater Less Log1p LogAddExp Matmul "
    "Maximum Minimum Multiply Negative Power Remainder Round Sigmoid Sign Sin Sinh "
    "Square Subtract Tan Tanh"
).split():
    _MLX[_name] = _elementwise(getattr(mx, _name.lower()))
_NAMED: dict[str, Callable[..., mx.array]] = {
    "GreaterEqual": mx.greater_equal,
    "LessEqual": mx.less_equal,
    "LogicalAnd": mx.logical_and,
    "LogicalNot": mx.logical_not,
    "LogicalOr": mx.logical_or,
    "NotEqual": mx.not_equal,
    "Select": mx.where,
    "StopGradient": mx.stop_gradient,
    "Copy": lambda x: x,
    "Contiguous": lambda x: x,
    "Depends": lambda x, *_: x,
}
for _name, _function in _NAMED.items():
    _MLX[_name] = _elementwise(_function)
for _name in "Reshape Flatten Unflatten ExpandDims Squeeze".split():
    _MLX[_name] = lambda x, _, out: x[0].reshape(out.shape)
for _name in ("Broadcast", "BroadcastAxes"):
    _MLX[_name] = lambda x, _, out: mx.broadcast_to(x[0], out.shape)
_MLX |= {
    "AsType": lambda x, a, _: x[0].astype(a[0]),
    "Transpose": lambda x, a, _: x[0].transpose(a[0]),
    "Full": lambda x, _, out: mx.broadcast_to(x[0], out.shape).astype(out.dtype),
    "Arange": lambda _, a, out: mx.arange(*a).astype(out.dtype),
    "Concatenate": lambda x, a, _: mx.concatenate(x, axis=a[0]),
    "Softmax": lambda x, a, _: mx.softmax(x[0], axis=-1, precise=bool(a and a[0])),
    "LogSumExp": lambda x, _, __: mx.logsumexp(x[0], axis=-1, keepdims=True),
    "Sqrt": lambda x, a, _: (mx.rsqrt if a and a[0] else mx.sqrt)(x[0]),
    "Log": lambda x, a, _: (mx.log2, mx.log10, mx.log)[a[0] if a else 2](x[0]),
    "AddMM": lambda x, a, _: mx.addmm(x[2], x[0], x[1], a[0], a[1]),
    "ArgReduce": lambda x, a, _: (mx.argmax if a[0] else mx.argmin)(
        x[0], axis=a[1], keepdims=True
    ),
    "GatherAxis": lambda x, a, _: mx.take_along_axis(x[0], x[1], a[0]),
}
_REDUCE = (mx.all, mx.any, mx.sum, mx.prod, mx.min, mx.max)
_SCAN = {2: mx.cumsum, 3: mx.cumprod, 4: mx.cummin, 5: mx.cummax}
_BITWISE: tuple[Callable[..., mx.array], ...] = (
    mx.bitwise_and,
    mx.bitwise_or,
    mx.bitwise_xor,
    mx.left_shift,
    mx.right_shift,
)
_MLX["BitwiseBinary"] = lambda x, a, _: _BITWISE[a[0]](*x)


def ranges(
    arguments: Sequence[Any], whole: tuple[int, ...], part: tuple[int, ...]
) -> list[range]:
    """The elements that Slice or SliceUpdate take of each axis of `whole`."""
    start, _, strides = [a for a in arguments if isinstance(a, (list, tuple))][:3]
    found = []
    for b, s, n, size in zip(start, strides, whole, part, strict=True):
        first = min(b + n if b < 0 else b, n - 1) if size else 0
        found.append(range(first, first + size * s, s))
    return found


def _index(kept: Sequence[range]) -> tuple[slice, ...]:
    return tuple(slice(r.start, None if r.stop < 0 else r.stop, r.step) for r in kept)


@run_as("Slice")
def _slice(x: list[mx.array], a: tuple[Any, ...], out: Type) -> mx.array:
    return x[0][_index(ranges(a, x[0].shape, out.shape))]


@run_as("SliceUpdate")
def _slice_update(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    at = _index(ranges(a, x[0].shape, x[1].shape))
    if any(isinstance(m, int) and m == 2 for m in a):  # adds instead of replacing
        return x[0].at[at].add(x[1])
    y = mx.array(x[0])
    y[at] = x[1]
    return y


@run_as("Split")
def _split(x: list[mx.array], a: tuple[Any, ...], _: Type) -> list[mx.array]:
    return list(mx.split(x[0], a[0] if isinstance(a[0], int) else list(a[0]), a[1]))


@run_as("Reduce")
def _reduce(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    return _REDUCE[a[0]](x[0], axis=list(a[1]), keepdims=True)


@run_as("Scan")
def _scan(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    return _SCAN[a[0]](x[0], axis=a[1], reverse=a[2], inclusive=a[3])


@run_as("Pad")
def _pad(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    widths = [(0, 0)] * x[0].ndim
    for axis, low, high in zip(*a[:3], strict=True):
        widths[axis] = (low, high)
    return mx.pad(x[0], widths, constant_values=x[1])


@run_as("Convolution")
def _convolution(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    stride, low, high, kernel, dilation, groups, flip = a
    return mx.conv_general(
        x[0], x[1], stride, (low, high), kernel, dilation, groups, flip
    )


@run_as("RandomBits")
def _random_bits(x: list[mx.array], a: tuple[Any, ...], out: Type) -> mx.array:
    # Bits of a key depend on their number alone, and split() gives any even number.
    if a[1] != 4 or out.size % 2:
        raise Unsupported("RandomBits", "need an even number of 32-bit elements")
    return mx.random.split(x[0], out.size // 2).reshape(out.shape)


@run_as("Gather")
def _gather(x: list[mx.array], a: tuple[Any, ...], out: Type) -> mx.array:
    (rows, *indices), (axes, sizes) = x, a
    if len(indices) == 1 and sizes[axes[0]] == 1:
        rank = indices[0].ndim
        y = mx.take(mx.moveaxis(rows, axes[0], 0), indices[0], axis=0)
        return mx.expand_dims(y, rank + axes[0]).reshape(out.shape)
    if list(axes) != list(range(len(axes))) or any(sizes[i] != 1 for i in axes):
        raise Unsupported("Gather", "need whole rows along one axis, or the first ones")
    return rows[tuple(indices)].reshape(out.shape)
