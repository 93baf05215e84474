"""Forms of MLX primitives that the engine likes better, found on a tape.

Each pattern of `PATTERNS` turns one node, and what feeds it, into one node of ours;
`Tape.run` runs that in a form that keeps to fp16's range, and that MLX differentiates.
The patterns are those of MLX 0.32.4 on a CPU stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ane.tape import LAYOUT, Node, Tape, Type, ranges, run_as

__all__ = ["GRADIENTS", "PATTERNS", "recognise"]

#: The smallest magnitude that a row is scaled by.
FLOOR = 2.0**-10
#: What masks add instead of minus infinity: sums with scores stay in fp16.
FAR = -30000.0


class Tree:
    """What feeds a value."""

    def __init__(self, tape: Tape) -> None:
        self.tape, self.producer = tape, tape.producers()

    def match(self, value: str, *names: str) -> Node | None:
        """The node behind a value, past broadcasts, if it has one of these names."""
        node = self.producer.get(self.narrow(value))
        return node if node is not None and node.name in names else None

    def narrow(self, value: str) -> str:
        """The value that was broadcast to this one."""
        while (node := self.producer.get(value)) and node.name == "Broadcast":
            value = node.inputs[0]
        return value

    def scalar(self, value: str) -> float | None:
        """The number, if the value is one."""
        array = self.tape.constants.get(self.narrow(value))
        if array is None or array.size != 1:
            return None
        return float(np.array(array.astype(mx.float32)).item())

    def scaled(self, value: str, *names: str) -> tuple[str, float] | None:
        """x and c, if the value is x * c or x / c."""
        node = self.match(value, "Multiply", "Divide")
        if node is None:
            return None
        for x, c in (node.inputs, node.inputs[::-1]):
            number = self.scalar(c)
            if number is not None:
                return (x, number if node.name == "Multiply" else 1 / number)
        return None

    def shape(self, value: str) -> tuple[int, ...]:
        return self.tape.types[value].shape

    @cached_property
    def products(self) -> set[str]:
        """What depends on a matrix product."""
        products = [n for n in self.tape.nodes if n.name in ("Matmul", "AddMM")]
        return self.tape.reached_from(v for n in products for v in n.outputs)

    def is_join(self, node: Node) -> bool:
        """Whether a Concatenate joins along the last axis."""
        return bool(node.arguments[0] == len(self.shape(node.outputs[0])) - 1)

    def columns(self, value: str) -> tuple[str, range] | None:
        """x and which elements of its last axis, if the value is a Slice of x."""
        node = self.match(value, "Slice")
        if node is None:
            return None
        whole = self.shape(node.inputs[0])
        *rows, columns = ranges(node.arguments, whole, self.shape(value))
        if any(r != range(n) for r, n in zip(rows, whole, strict=False)):
            return None
        return node.inputs[0], columns

    def constant(self, array: mx.array) -> str:
        """A new constant."""
        value = self.tape.like("k", Type(tuple(array.shape), array.dtype))
        self.tape.constants[value] = array
        return value


# Nodes in the place of one, the last with its outputs.
Pattern = Callable[[Tree, Node], "list[Node] | None"]
Patterns = list[tuple[str, Pattern]]
PATTERNS: Patterns = []
#: For gradients that MLX wrote: into primitives again.
GRADIENTS: Patterns = []


def pattern(name: str, table: Patterns = PATTERNS) -> Callable[[Pattern], Pattern]:
    """Enter a pattern for nodes of this name into a table."""

    def enter(found: Pattern) -> Pattern:
        table.append((name, found))
        return found

    return enter


def recognise(tape: Tape, patterns: Patterns = PATTERNS) -> Tape:
    """The same function in the forms of this module."""
    tape = replace(tape, constants=dict(tape.constants), types=dict(tape.types))
    tree, nodes = Tree(tape), []
    for node in tape.nodes:
        for name, find in patterns:
            if node.name == name and (found := find(tree, node)):
                break
        else:
            found = [node]
        for new in found:
            tree.producer.update(dict.fromkeys(new.outputs, new))
        nodes += found
    return replace(tape, nodes=nodes).live()


# Norms: x * rsqrt(c * sum(x * x) + eps), c is 1 / D for RMS and layer norm.


@pattern("Multiply")
@pattern("Divide")
def _unit(tree: Tree, node: Node) -> list[Node] | None:
    orders = [node.inputs, node.inputs[::-1]]
    for x, root in orders[:1] if node.name == "Divide" else orders:
        sqrt = tree.match(root, "Sqrt")
        if sqrt is None or bool(sqrt.arguments[0]) == (node.name == "Divide"):
            continue
        inner, eps = sqrt.inputs[0], 0.0
        add = tree.match(inner, "Add")
        if add is not None:
            for a, b in (add.inputs, add.inputs[::-1]):
                number = tree.scalar(b)
                if number is not None:
                    inner, eps = a, number
        inner, factor = tree.scaled(inner) or (inner, 1.0)
        total = tree.match(inner, "Reduce")
        last = [len(tree.shape(x)) - 1]
        if total is None or total.arguments[0] != 2 or list(total.arguments[1]) != last:
            continue
        squares = total.inputs[0]
        same = tree.narrow(_squared(tree, squares)) == tree.narrow(x)
        if same and tree.shape(squares) == tree.shape(x) and factor > 0 <= eps:
            return [Node("Unit", (factor, eps), (x,), node.outputs)]
    return None


def _squared(tree: Tree, value: str) -> str:
    node = tree.match(value, "Square", "Multiply", "Power")
    if node is None:
        return ""
    if node.name == "Multiply" and len(set(node.inputs)) > 1:
        return ""
    if node.name == "Power" and tree.scalar(node.inputs[1]) != 2:
        return ""
    return node.inputs[0]


@run_as("Unit")
def _run_unit(x: list[mx.array], arguments: tuple[Any, ...], _: Type) -> mx.array:
    """Rows (..., D) scaled by their maximum first, so that no square leaves fp16.

    The gradient is r / m * (g - c * y * sum(g * y)), whose terms are of order one: the
    stopped values below give it that form.
    """
    factor, eps = arguments
    stop = mx.stop_gradient
    m = stop(mx.maximum(mx.max(mx.abs(x[0]), axis=-1, keepdims=True), FLOOR))
    u, e = x[0] / m, (eps**0.5) / m
    r = mx.rsqrt(mx.sum(mx.square(u), axis=-1, keepdims=True) * factor + mx.square(e))
    y, t = stop(u * r), u * stop(r)
    a = mx.sum(y * t, axis=-1, keepdims=True) * factor
    return t - y * (a - stop(a))


# Rotations: pairs (a, b) of the last axis become (a cos - b sin, a sin + b cos).


@pattern("Concatenate")
def _rotate_halves(tree: Tree, node: Node) -> list[Node] | None:
    """[a cos - b sin, a sin + b cos], and the rest of the row."""
    if tree.is_join(node) and len(node.inputs) in (2, 3):
        return _rotation(tree, node.outputs, *node.inputs, neighbours=False)
    return None


@pattern("Reshape")
@pattern("Concatenate")
def _rotate_pairs(tree: Tree, node: Node) -> list[Node] | None:
    """The same of neighbours, joined in a new last axis, and the rest of the row."""
    pairs, rest = node, node.inputs[1:]
    if node.name == "Concatenate":
        inner = tree.match(node.inputs[0], "Reshape")
        if inner is None or not tree.is_join(node) or len(rest) != 1:
            return None
        pairs = inner
    join = tree.match(pairs.inputs[0], "Concatenate")
    if join is None or not tree.is_join(join) or len(join.inputs) != 2:
        return None
    parts = [tree.match(v, "ExpandDims") for v in join.inputs]
    last = len(tree.shape(join.outputs[0])) - 1
    if any(p is None or list(p.arguments[0]) != [last] for p in parts):
        return None
    if last != len(tree.shape(node.outputs[0])):
        return None
    halves = [p.inputs[0] for p in parts if p is not None]
    return _rotation(tree, node.outputs, *halves, *rest, neighbours=True)


def _rotation(
    tree: Tree,
    outputs: tuple[str, ...],
    first: str,
    second: str,
    rest: str | None = None,
    *,
    neighbours: bool,
) -> list[Node] | None:
    minus, plus = tree.match(first, "Subtract"), tree.match(second, "Add")
    if minus is None or plus is None:
        return None
    products = [tree.match(v, "Multiply") for v in (*minus.inputs, *plus.inputs)]
    if any(p is None for p in products):
        return None
    ac, bs, *others = (p.inputs for p in products if p is not None)
    (a, cos), (b, sin) = ac, bs
    if {frozenset(o) for o in others} != {frozenset((a, sin)), frozenset((b, cos))}:
        return None
    half, width = tree.shape(a)[-1], tree.shape(outputs[0])[-1]
    whole = range(2 * half)
    taken = [tree.columns(v) for v in (a, b, rest) if v is not None]
    wanted = [whole[::2], whole[1::2]] if neighbours else [whole[:half], whole[half:]]
    wanted += [range(2 * half, width)] if rest is not None else []
    if any(t is None for t in taken):
        return None
    sources, columns = zip(*(t for t in taken if t is not None), strict=True)
    if len(set(sources)) > 1 or list(columns) != wanted:
        return None
    x = sources[0]
    tables = [tree.narrow(v) for v in (cos, sin)]
    if tree.shape(x) != tree.shape(outputs[0]) or any(
        tree.shape(table)[-1:] != (half,) for table in tables
    ):
        return None
    wide = [
        tree.tape.like(v, Type((*tree.shape(v)[:-1], width), mx.float32))
        for v in tables
    ]
    nodes = [
        Node("RotaryTable", (neighbours, width, beyond), (table,), (v,))
        for table, v, beyond in zip(tables, wide, (1.0, 0.0), strict=True)
    ]
    turn = tree.constant(_turn(half, width, neighbours))
    return [*nodes, Node("Rotate", (), (x, *wide, turn), outputs)]


def _turn(half: int, width: int, neighbours: bool) -> mx.array:
    """R with x @ R = -b at a and a at b."""
    turn = np.zeros((width, width), np.float32)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + half)
        turn[b, a], turn[a, b] = -1, 1
    return mx.array(turn)


@run_as("RotaryTable")
def _run_table(x: list[mx.array], a: tuple[Any, ...], out: Type) -> mx.array:
    neighbours, width, beyond = a
    wide = mx.repeat(x[0], 2, axis=-1) if neighbours else mx.concatenate([*x, *x], -1)
    rest = mx.full((*out.shape[:-1], width - wide.shape[-1]), beyond)
    return mx.concatenate([wide, rest], -1) if rest.size else wide


@run_as("Rotate")
def _run_rotate(x: list[mx.array], _: tuple[Any, ...], __: Type) -> mx.array:
    """x * C + (x @ R) * S: a signed permutation neither slices nor joins."""
    rows, cos, sin, turn = x
    return rows * cos + (rows @ turn) * sin


# Grouped heads: (..., r, M, K) @ (..., 1, K, N) without broadcasting the second.


@pattern("Matmul")
def _grouped(tree: Tree, node: Node) -> list[Node] | None:
    a, b = node.inputs
    narrow = tree.narrow(b)
    rows, one = tree.shape(a), tree.shape(narrow)
    fits = len(rows) == len(one) >= 4 and one[-3] == 1 < rows[-3]
    if not fits or rows[:-3] != one[:-3]:
        return None
    return [Node("GroupedMatmul", (), (a, narrow), node.outputs)]


@run_as("GroupedMatmul")
def _run_grouped(x: list[mx.array], _: tuple[Any, ...], out: Type) -> mx.array:
    a, b = x
    *batch, r, m, k = a.shape
    y = a.reshape(*batch, r * m, k) @ b.squeeze(-3)
    return y.reshape(out.shape)


# Masks: minus infinity and the like become what fp16 can add to a score.


@pattern("Softmax")
def _masked(tree: Tree, node: Node) -> list[Node] | None:
    add = tree.producer.get(node.inputs[0])
    if add is None or add.name != "Add":
        return None
    masks = [v for v in add.inputs if v not in tree.products]
    if len(masks) != 1:
        return None
    chain, top = [], masks[0]
    while (above := tree.producer.get(top)) and above.name in LAYOUT:
        chain.append(above)
        top = above.inputs[0]
    if above and above.name == "Floored":
        return None
    nodes = [Node("Floored", (), (top,), (tree.tape.like(top, tree.tape.types[top]),))]
    for above in reversed(chain):
        like = tree.tape.like(above.outputs[0], tree.tape.types[above.outputs[0]])
        nodes.append(replace(above, inputs=nodes[-1].outputs, outputs=(like,)))
    total = tree.tape.like(add.outputs[0], tree.tape.types[add.outputs[0]])
    inputs = [nodes[-1].outputs[0] if v == masks[0] else v for v in add.inputs]
    nodes.append(replace(add, inputs=tuple(inputs), outputs=(total,)))
    return [*nodes, replace(node, inputs=(total,))]


@run_as("Floored")
def _run_floored(x: list[mx.array], _: tuple[Any, ...], __: Type) -> mx.array:
    return mx.maximum(x[0], FAR)


# Quantised weights: dequantised before the program, the product is a plain one.

MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


@pattern("QuantizedMatmul")
def _quantised(tree: Tree, node: Node) -> list[Node] | None:
    *options, transposed = node.arguments
    x, *packed = node.inputs
    n, k = tree.shape(node.outputs[0])[-1], tree.shape(x)[-1]
    shape = (n, k) if transposed else (k, n)
    if len(tree.shape(packed[0])) != 2:
        return None
    weight = tree.tape.like(packed[0], Type(shape, mx.float32))
    nodes = [Node("Dequantised", tuple(options), tuple(packed), (weight,))]
    if transposed:
        turned = tree.tape.like(weight, Type((k, n), mx.float32))
        nodes.append(Node("Transpose", ([1, 0],), (weight,), (turned,)))
        weight = turned
    return [*nodes, Node("Matmul", (), (x, weight), node.outputs)]


@run_as("Dequantised")
def _run_dequantised(x: list[mx.array], a: tuple[Any, ...], _: Type) -> mx.array:
    return dequantised(x, a)


def dequantised(x: Sequence[mx.array], a: tuple[Any, ...]) -> mx.array:
    """The weight of a Dequantised node with operands ``x`` and arguments ``a``."""
    group, bits, mode = a
    packed, scales, *biases = x
    w = mx.dequantize(
        packed,
        scales,
        biases[0] if biases else None,
        group_size=group,
        bits=bits,
        mode=MODES[mode],
    )
    # Scales of the other modes are codes, which have no gradient.
    return w if biases else mx.stop_gradient(w)


# Depthwise convolutions along the rows: shifted rows times taps.


@pattern("Convolution")
def _depthwise(tree: Tree, node: Node) -> list[Node] | None:
    stride, low, high, kernel, dilation, groups, flip = node.arguments
    shape = tree.shape(node.inputs[1])  # (C, taps, 1)
    plain = (
        len(shape) == 3
        and (shape[0], 1) == (groups, shape[2])
        and list(stride) == list(kernel) == list(dilation) == [1]
        and not flip
    )
    if not plain:
        return None
    return [Node("Depthwise", (low[0], high[0]), node.inputs, node.outputs)]


@run_as("Depthwise")
def _run_depthwise(x: list[mx.array], a: tuple[Any, ...], out: Type) -> mx.array:
    rows, weight = x  # (B, S, C), (C, taps, 1)
    if any(a):
        rows = mx.pad(rows, [(0, 0), a, (0, 0)])
    size = out.shape[1]
    parts = [rows[:, j : j + size] * weight[:, j, 0] for j in range(weight.shape[1])]
    return sum(parts[1:], parts[0])


# The gradient of tanh: MLX divides by cosh squared, which leaves fp16.


@pattern("Divide", GRADIENTS)
def _tanh_gradient(tree: Tree, node: Node) -> list[Node] | None:
    square = tree.match(node.inputs[1], "Square")
    cosh = square and tree.match(square.inputs[0], "Cosh")
    if not cosh:
        return None
    x = cosh.inputs[0]
    of = tree.tape.types[x]
    one = tree.constant(mx.array(1.0))
    t, t2, d = (tree.tape.like(x, of) for _ in range(3))
    return [
        Node("Tanh", (), (x,), (t,)),
        Node("Square", (), (t,), (t2,)),
        Node("Subtract", (), (one, t2), (d,)),
        Node("Multiply", (), (node.inputs[0], d), node.outputs),
    ]
