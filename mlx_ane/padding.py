"""Proves on a tape that padded rows cannot reach valid ones.

A program serves every number of rows up to its own if what it computes for the first S
rows is what a program of exactly S rows computes. `guard` follows, for each value, the
axes along which elements past S are padding: products and sums may not run over such an
axis, unless the padding is masked out. Where a softmax would, a mask is added: an
input, so that the program is the same for every S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np

from mlx_ane.recognise import FAR
from mlx_ane.tape import Node, Tape, Type, Unsupported, ranges

__all__ = ["guard"]

#: An axis, and how many of its elements make a row: axes may have been joined to it.
Mark = tuple[int, int]
Marks = frozenset[Mark]
NONE: Marks = frozenset()

ELEMENTWISE = frozenset(
    "Abs Add AsType Ceil Contiguous Copy Cos Cosh Divide Equal Erf Exp Expm1 Floor "
    "Floored Greater GreaterEqual Less LessEqual Log Log1p LogAddExp LogicalAnd "
    "LogicalNot LogicalOr Maximum Minimum Multiply Negative NotEqual Power Rotate "
    "Round Select Sigmoid Sign Sin Sqrt Square StopGradient Subtract Tanh".split()
)
RESHAPE = frozenset("Reshape Flatten Unflatten ExpandDims Squeeze".split())


def guard(
    tape: Tape, exact: Tape, axes: dict[str, tuple[int, ...]], size: int, rows: int
) -> tuple[Tape, list[int], dict[str, mx.array]]:
    """The tape with masks where padding needs them.

    Args:
        tape (Tape): Recorded with `rows` rows.
        exact (Tape): The same function with `size` rows.
        axes: For each input the axes that are padded.
        size (int): S, the valid rows.
        rows (int): The rows of the program.

    Returns:
        tuple: The tape, for each output the axis of its rows, and the masks: its last
        inputs.

    Raises:
        Unsupported: Padded rows may reach valid ones.
    """
    same = [n.name for n in tape.nodes] == [n.name for n in exact.nodes]
    if not same or tape.constants.keys() != exact.constants.keys():
        raise Unsupported("Padding", "the function depends on the number of rows")
    proof = _Proof(tape, size, rows)
    for value, array in tape.constants.items():
        proof.constant(value, array, exact.constants[value])
    for value, padded in axes.items():
        proof.marks[value] = frozenset((axis, 1) for axis in padded)
    nodes: list[Node] = []
    for node in tape.nodes:
        nodes += proof.follow(node)
    outputs = [proof.only_axis(v) for v in tape.outputs]
    inputs = [*proof.tape.inputs, *proof.masks]
    return replace(proof.tape, inputs=inputs, nodes=nodes), outputs, proof.masks


class _Proof:
    def __init__(self, tape: Tape, size: int, rows: int) -> None:
        self.tape = replace(
            tape, types=dict(tape.types), constants=dict(tape.constants)
        )
        self.size, self.rows = size, rows
        self.marks: dict[str, Marks] = {}
        #: Axes whose padding is far below every score, or zero.
        self.far: dict[str, Marks] = {}
        self.zero: dict[str, Marks] = {}
        self.masks: dict[str, mx.array] = {}

    def constant(self, value: str, array: mx.array, exact: mx.array) -> None:
        padded = [
            i
            for i, (a, b) in enumerate(zip(array.shape, exact.shape, strict=True))
            if a != b
        ]
        valid = array[tuple(slice(n) for n in exact.shape)]
        if not mx.array_equal(valid, exact).item() or any(
            (exact.shape[i], array.shape[i]) != (self.size, self.rows) for i in padded
        ):
            raise Unsupported("Padding", "a table depends on the number of rows")
        self.marks[value] = frozenset((i, 1) for i in padded)

    def follow(self, node: Node) -> list[Node]:
        """Find the marks of a node's outputs; return the node, and a mask before it."""
        rule = _RULES.get(node.name)
        if not any(self.of(v) for v in node.inputs):
            rule = _clean
        elif node.name in ELEMENTWISE:
            rule = _elementwise
        elif node.name in RESHAPE:
            rule = _reshape
        if rule is None:
            raise self.refuse(node)
        before: list[Node] = []
        if node.name == "Softmax" and (masked := self.mask(node)):
            node = replace(node, inputs=masked.outputs)
            before = [masked]
        rule(self, node)
        return [*before, node]

    def of(self, value: str) -> Marks:
        return self.marks.get(value, NONE)

    def shape(self, value: str) -> tuple[int, ...]:
        return self.tape.types[value].shape

    def refuse(self, node: Node) -> Unsupported:
        why = f"padded rows may reach valid ones in {node.name}"
        return Unsupported("Padding", why, self.tape.near(node))

    def mask(self, node: Node) -> Node | None:
        """A sum that moves the padding of the last axis far down, if it must be."""
        (scores,) = node.inputs
        last = len(self.shape(scores)) - 1
        mark = (last, 1)
        if mark not in self.of(scores) or mark in self.far.get(scores, NONE):
            return None
        table = np.where(np.arange(self.rows) < self.size, 0.0, FAR)
        keys = next(iter(self.masks), "") or self.tape.like(
            scores, Type((self.rows,), mx.float32)
        )
        self.masks[keys] = mx.array(table, dtype=mx.float32)
        masked = self.tape.like(scores, self.tape.types[scores])
        self.marks[masked] = self.of(scores)
        self.far[masked] = self.far.get(scores, NONE) | {mark}
        return Node("Add", (), (scores, keys), (masked,))

    def only_axis(self, value: str) -> int:
        """The axis of an output's rows."""
        marks = self.of(value)
        if len(marks) != 1 or next(iter(marks))[1] != 1:
            raise Unsupported("Padding", "an output has no single axis of rows")
        return next(iter(marks))[0]

    def aligned(self, marks: Marks, of: str, to: str) -> Marks:
        """Marks of an operand that is broadcast to another value's shape."""
        shift = len(self.shape(to)) - len(self.shape(of))
        return frozenset((axis + shift, inner) for axis, inner in marks)


Rule = Callable[[_Proof, Node], None]


def _clean(p: _Proof, node: Node) -> None:
    p.marks.update(dict.fromkeys(node.outputs, NONE))


def _elementwise(p: _Proof, node: Node) -> None:
    (out,) = node.outputs
    if not _stays_finite(p, node):
        raise p.refuse(node)
    united = [p.aligned(p.of(v), v, out) for v in node.inputs]
    p.marks[out] = frozenset().union(*united)
    if node.name == "Select":
        p.far[out] = _masked(p, node)
    if node.name == "Add":
        p.far[out] = frozenset().union(
            *(p.aligned(p.far.get(v, NONE), v, out) for v in node.inputs)
        )
    if node.name in ("AsType", "Copy", "StopGradient", "Multiply"):
        p.zero[out] = frozenset().union(
            *(p.aligned(p.zero.get(v, NONE), v, out) for v in node.inputs)
        )


def _stays_finite(p: _Proof, node: Node) -> bool:
    """Whether rows of zeros, and their gradients, stay finite: 0 * inf is NaN."""
    if node.name == "Divide":
        return not p.of(node.inputs[1])
    if node.name == "Power":
        return _number(p, node.inputs[1]) in (1, 2, 3, 4)
    return node.name not in ("Log", "Sqrt")


def _masked(p: _Proof, node: Node) -> Marks:
    """Axes along which a Select puts a very negative number into all the padding.

    Only for valid elements of the other axes: the rest is padding itself.
    """
    condition, _, other = node.inputs
    known, number = p.tape.constants.get(_source(p, condition)), _number(p, other)
    if known is None or number is None or number > -1e4:
        return NONE
    (out,) = node.outputs
    mask = np.broadcast_to(np.array(known), p.shape(out)[-known.ndim :])
    shift = len(p.shape(out)) - mask.ndim
    found = set()
    for axis, inner in p.marks[out]:
        if inner != 1 or axis < shift:
            continue
        at = [slice(None)] * mask.ndim
        for other_axis, _ in p.marks[out]:
            if other_axis >= shift:
                at[other_axis - shift] = slice(p.size)
        at[axis - shift] = slice(p.size, None)
        if not mask[tuple(at)].any():
            found.add((axis, 1))
    return frozenset(found)


def _source(p: _Proof, value: str) -> str:
    producers = p.tape.producers()
    while (node := producers.get(value)) and node.name == "Broadcast":
        value = node.inputs[0]
    return value


def _number(p: _Proof, value: str) -> float | None:
    array = p.tape.constants.get(_source(p, value))
    if array is None or array.size != 1:
        return None
    return float(np.array(array.astype(mx.float32)).item())


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def _reshape(p: _Proof, node: Node) -> None:
    """Rows keep their place in row-major order: find the axis that holds it now."""
    (value,), (out,) = node.inputs, node.outputs
    before, after = p.shape(value), p.shape(out)
    found = set()
    for axis, inner in p.of(value):
        stride = inner * _strides(before)[axis]
        for i, step in enumerate(_strides(after)):
            whole = step * after[i]
            if step <= stride and stride * p.rows <= whole and whole % stride == 0:
                if stride % step:
                    continue
                found.add((i, stride // step))
                break
        else:
            raise p.refuse(node)
    p.marks[out] = frozenset(found)
    zero = p.zero.get(value, NONE)
    last = (len(before) - 1, 1)
    if last in zero and before[-1] == after[-1]:
        p.zero[out] = frozenset({(len(after) - 1, 1)})


def _broadcast(p: _Proof, node: Node) -> None:
    value, (out,) = node.inputs[0], node.outputs
    p.marks[out] = p.aligned(p.of(value), value, out)


def _transpose(p: _Proof, node: Node) -> None:
    (value,), (out,) = node.inputs, node.outputs
    place = {old: new for new, old in enumerate(node.arguments[0])}
    for marks in (p.marks, p.zero):
        moved = marks.get(value, NONE)
        marks[out] = frozenset((place[axis], inner) for axis, inner in moved)


def _softmax(p: _Proof, node: Node) -> None:
    (value,), (out,) = node.inputs, node.outputs
    last = (len(p.shape(value)) - 1, 1)
    if any(axis == last[0] and inner != 1 for axis, inner in p.of(value)):
        raise p.refuse(node)
    p.marks[out] = p.of(value) - {last}
    p.zero[out] = frozenset({last} & p.of(value))


def _matmul(p: _Proof, node: Node) -> None:
    (x, y), (out,) = node.inputs[:2], node.outputs
    across, down = len(p.shape(x)) - 1, len(p.shape(y)) - 2
    padded = [m for m in p.of(x) if m[0] == across]
    padded += [(across, inner) for axis, inner in p.of(y) if axis == down]
    # Valid rows of x are zero there, and so the padding of y does not count.
    if any(m not in p.zero.get(x, NONE) for m in padded):
        raise p.refuse(node)
    rank = len(p.shape(out))
    left = {(a + rank - len(p.shape(x)), i) for a, i in p.of(x) if a != across}
    right = {(a + rank - len(p.shape(y)), i) for a, i in p.of(y) if a != down}
    p.marks[out] = frozenset(left | right).union(
        *(p.aligned(p.of(v), v, out) for v in node.inputs[2:])  # AddMM's third
    )


def _rowwise(p: _Proof, node: Node) -> None:
    """What works along the last axis alone."""
    value, (out,) = node.inputs[0], node.outputs
    if any(axis == len(p.shape(value)) - 1 for axis, _ in p.of(value)):
        raise p.refuse(node)
    if node.name == "Unit" and node.arguments[1] == 0:
        raise p.refuse(node)  # 0 / 0
    p.marks[out] = p.of(value)


def _reduce(p: _Proof, node: Node) -> None:
    value, (out,) = node.inputs[0], node.outputs
    if any(axis in node.arguments[1] for axis, _ in p.of(value)):
        raise p.refuse(node)
    p.marks[out] = p.of(value)


def _parts(p: _Proof, node: Node) -> None:
    """Slices and joins of other axes."""
    marks = frozenset().union(*(p.of(v) for v in node.inputs))
    whole = p.shape(node.inputs[0])
    if node.name == "Slice":
        kept = ranges(node.arguments, whole, p.shape(node.outputs[0]))
        changed = {i for i, n in enumerate(whole) if kept[i] != range(n)}
    else:
        changed = {node.arguments[-1] % len(whole)}
    if any(axis in changed for axis, _ in marks):
        raise p.refuse(node)
    p.marks.update(dict.fromkeys(node.outputs, marks))


_RULES: dict[str, Rule] = {
    "Broadcast": _broadcast,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "AddMM": _matmul,
    "Matmul": _matmul,
    "GroupedMatmul": _matmul,
    "Unit": _rowwise,
    "LogSumExp": _rowwise,
    "Reduce": _reduce,
    "Slice": _parts,
    "Split": _parts,
    "Concatenate": _parts,
}
