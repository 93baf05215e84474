"""Translates a tape of MLX primitives into one MIL program.

Each entry of `PRIMITIVES` is a small function: it takes the operands of one primitive
and emits MIL operations through a `Builder`. Weights, masks and tables are inputs of
the program; numbers are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ane.builder import (
    FORMS,
    Builder,
    Operand,
    Program,
    Value,
    four_axes,
    is_all,
    is_number,
    operand,
)
from mlx_ane.recognise import FAR, GRADIENTS, recognise
from mlx_ane.tape import Node, Tape, Unsupported, ranges

__all__ = ["FORMS", "PRIMITIVES", "Primitive", "choose", "translate"]


def translate(tape: Tape, **forms: str) -> Program:
    """Write a tape as one MIL program.

    Args:
        tape (Tape): Of MLX's primitives: what `lowered` and `gradients` return.
        **forms (str): A choice for each entry of `FORMS`; its first one by default.

    Returns:
        Program: Its text, how to fill its inputs and read its outputs.

    Raises:
        Unsupported: A primitive has no translation, or none for these arguments.
        ValueError: An unknown form.
    """
    for name, choice in forms.items():
        if choice not in FORMS.get(name, ((), ""))[0]:
            known = {k: v for k, (v, _) in FORMS.items()}
            raise ValueError(
                f"[mlx_ane.translate] form {name} is {choice!r}, need one of {known}."
            )
    tape = recognise(tape, GRADIENTS)
    builder = Builder(tape, {k: v[0] for k, (v, _) in FORMS.items()} | forms)
    emit(builder, {name: p.emit for name, p in PRIMITIVES.items()})
    return builder.program()


def choose(right: Collection[str] | None) -> dict[str, str]:
    """The forms to translate with: of each, the first choice that is right.

    Args:
        right: What was found right on a machine, such as "sigmoid=tanh"; None if
            nothing is known. A form of which no choice is right keeps its first.

    Returns:
        dict[str, str]: For `translate`; only what differs from the default.
    """
    chosen = {}
    for form, (choices, _) in FORMS.items():
        found = [c for c in choices if right is None or f"{form}={c}" in right]
        if found and found[0] != choices[0]:
            chosen[form] = found[0]
    return chosen


Emit = Callable[..., Any]


def emit(builder: Builder, table: Mapping[str, Emit]) -> None:
    """Emit the nodes of the builder's tape by a table of primitives.

    Raises:
        Unsupported: A primitive is not in the table, or not with these arguments.
    """
    tape = builder.tape
    for node in tape.nodes:
        try:
            if node.name not in table:
                raise Unsupported(node.name, "it has no translation")
            operands = [builder.values[v] for v in node.inputs]
            made = table[node.name](builder, node, *operands)
        except Unsupported as error:
            raise Unsupported(node.name, error.why, tape.near(node)) from None
        results = made if isinstance(made, list) else [made]
        builder.values.update(zip(node.outputs, results, strict=True))


@dataclass(frozen=True)
class Primitive:
    """How a primitive of MLX is written in MIL."""

    name: str
    #: MIL operations that it emits.
    mil: str
    #: What public reports say about them on hardware.
    evidence: str
    #: The entry of `FORMS` that chooses among several ways.
    form: str
    emit: Emit


PRIMITIVES: dict[str, Primitive] = {}

EVERYWHERE = "compiles everywhere tried"
NONE = "no report"


def primitive(
    *names: str, mil: str, evidence: str = EVERYWHERE, form: str = ""
) -> Callable[[Emit], Emit]:
    """Enter a function into the table of primitives."""

    def enter(emit: Emit) -> Emit:
        for name in names:
            PRIMITIVES[name] = Primitive(name, mil, evidence, form, emit)
        return emit

    return enter


@primitive("Matmul", mil="matmul", evidence="runtime operands: H3, MAD#22, MAD#47")
def _matmul(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    wide = [b.shape(v) for v in n.inputs]
    # Batch axes may stay broadcast, rows and columns may not.
    left, right = (
        o if o.shape[-2:] == s[-2:] else b.full(v)
        for o, s, v in zip((x, y), wide, n.inputs, strict=True)
    )
    return b.matmul(left, right)


@primitive("AddMM", mil="matmul, mul, add")
def _addmm(b: Builder, n: Node, x: Operand, y: Operand, c: Operand) -> Operand:
    product = _matmul(b, replace(n, inputs=n.inputs[:2]), x, y)
    alpha, beta = n.arguments[:2]
    return b.add(b.mul(product, float(alpha)), b.mul(c, float(beta)))


#: Primitives that are one MIL operation under another name.
_MIL = {
    "Subtract": "sub",
    "Multiply": "mul",
    "Divide": "real_div",
    "GreaterEqual": "greater_equal",
    "LessEqual": "less_equal",
    "NotEqual": "not_equal",
}


def _name(n: Node) -> str:
    return _MIL.get(n.name, n.name.lower())


@primitive("Add", "Subtract", "Multiply", "Divide", mil="add, sub, mul, real_div")
def _arithmetic(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    return b.binary(_name(n), x, y)


@primitive("Negative", mil="mul")
def _negative(b: Builder, n: Node, x: Operand) -> Operand:
    return b.mul(x, -1.0)


@primitive("Square", mil="mul")
def _square(b: Builder, n: Node, x: Operand) -> Operand:
    return b.mul(x, x)


@primitive("Power", mil="pow, mul", evidence="M5D, MAD (y = -0.5)")
def _power(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    if not is_number(y):
        return b.binary("pow", x, y)
    exponent = float(y.item())  # type: ignore[union-attr]
    if exponent in (1, 2, 3, 4):
        power = x
        for _ in range(int(exponent) - 1):
            power = b.mul(power, x)
        return power
    return b.binary("pow", x, y)


@primitive("Maximum", mil="maximum", evidence=NONE, form="maximum")
def _maximum(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    return b.maximum(x, y) if isinstance(x, Value) else b.maximum(y, x)


@primitive("Minimum", mil="maximum", evidence=NONE, form="maximum")
def _minimum(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    negated = _maximum(b, n, b.mul(x, -1.0), b.mul(y, -1.0))
    return b.mul(negated, -1.0)


@primitive("Exp", "Erf", "Tanh", "Abs", mil="exp, erf, tanh, abs")
def _unary(b: Builder, n: Node, x: Operand) -> Operand:
    return b.unary(_name(n), x)


@primitive(
    *("Sign", "Floor", "Ceil", "Round"), mil="sign, floor, ceil, round", evidence=NONE
)
def _rounding(b: Builder, n: Node, x: Operand) -> Operand:
    return b.unary(_name(n), x)


@primitive("Sin", "Cos", mil="sin, cos", evidence="from M3 on (AF)")
def _circular(b: Builder, n: Node, x: Operand) -> Operand:
    return b.unary(_name(n), x)


@primitive("Expm1", mil="exp, sub")
def _expm1(b: Builder, n: Node, x: Operand) -> Operand:
    return b.add(b.unary("exp", x), -1.0)


@primitive("Sigmoid", mil="sigmoid", form="sigmoid")
def _sigmoid(b: Builder, n: Node, x: Operand) -> Operand:
    form = b.forms["sigmoid"]
    if form == "tanh":  # 0.5 + 0.5 tanh(x / 2)
        return b.add(b.mul(b.unary("tanh", b.mul(x, 0.5)), 0.5), 0.5)
    if form == "exp":
        e = b.unary("exp", b.mul(b.maximum(x, -10.0), -1.0))
        return b.divide(1.0, b.add(e, 1.0))
    return b.unary("sigmoid", x)


@primitive("Log", mil="log, mul", evidence=NONE)
def _log(b: Builder, n: Node, x: Operand) -> Operand:
    y = _natural_log(b, x)
    base = n.arguments[0] if n.arguments else 2
    return b.mul(y, {0: 1 / math.log(2), 1: 1 / math.log(10)}.get(base, 1.0))


@primitive("Log1p", mil="add, log", evidence=NONE)
def _log1p(b: Builder, n: Node, x: Operand) -> Operand:
    return _natural_log(b, b.add(x, 1.0))


@primitive("LogAddExp", mil="maximum, sub, abs, exp, log, add", evidence=NONE)
def _logaddexp(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    top = _maximum(b, n, x, y)
    gap = b.unary("abs", b.sub(x, y))
    e = b.unary("exp", b.mul(gap, -1.0))
    return b.add(top, _natural_log(b, b.add(e, 1.0)))


@primitive("LogSumExp", mil="reduce_max, exp, matmul, log", evidence=NONE, form="max")
def _logsumexp(b: Builder, n: Node, x: Operand) -> Operand:
    x = b.full(n.inputs[0])
    top = b.max(x, -1)
    e = b.unary("exp", b.sub(x, top))
    return b.add(top, _natural_log(b, b.sum(e, -1)))


def _natural_log(b: Builder, x: Operand) -> Operand:
    return b.unary("log", x, epsilon=0.0)


@primitive("Sqrt", mil="sqrt, pow", evidence="pow(x, -0.5): M5D, MAD", form="rsqrt")
def _sqrt(b: Builder, n: Node, x: Operand) -> Operand:
    if not (n.arguments and n.arguments[0]):
        return b.unary("sqrt", x)
    if isinstance(x, np.ndarray) or b.forms["rsqrt"] == "sqrt":
        return b.divide(1.0, b.unary("sqrt", x))
    if b.forms["rsqrt"] == "rsqrt":
        return b.unary("rsqrt", x, epsilon=0.0)
    return b.binary("pow", x, operand(-0.5))


@primitive("Softmax", mil="softmax")
def _softmax(b: Builder, n: Node, x: Operand) -> Operand:
    return b.unary("softmax", b.full(n.inputs[0]), axis=-1)


@primitive(
    "Greater",
    "GreaterEqual",
    "Less",
    "LessEqual",
    "Equal",
    "NotEqual",
    mil="greater and the like, select",
    evidence=NONE,
    form="compare",
)
def _compare(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    return b.indicator(_name(n), x, y)


@primitive("Select", mil="mul, sub, add", form="select")
def _select(b: Builder, n: Node, where: Operand, x: Operand, y: Operand) -> Operand:
    if isinstance(where, np.ndarray) and is_number(y) and float(y.item()) < -60000:  # type: ignore[union-attr]
        mask = np.broadcast_to(where, b.shape(n.inputs[0]))
        if isinstance(x, Value) and mask.any(-1).all():
            # Every row keeps an element: adding is as good as replacing.
            return b.add(x, (1 - where) * FAR)
    return b.choose(where, x, y)


@primitive("LogicalNot", mil="sub")
def _not(b: Builder, n: Node, x: Operand) -> Operand:
    return b.sub(1.0, x)


@primitive("LogicalAnd", mil="mul")
def _and(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    return b.mul(x, y)


@primitive("LogicalOr", mil="add, mul, sub")
def _or(b: Builder, n: Node, x: Operand, y: Operand) -> Operand:
    return b.sub(b.add(x, y), b.mul(x, y))


@primitive("AsType", mil="nothing", evidence="cast is never used")
def _astype(b: Builder, n: Node, x: Operand) -> Operand:
    before, after = (b.tape.types[v].dtype for v in (n.inputs[0], n.outputs[0]))
    if mx.issubdtype(before, mx.floating) and not mx.issubdtype(after, mx.floating):
        if after == mx.bool_:
            return b.indicator("not_equal", x, operand(0.0))
        raise Unsupported("AsType", f"{before} to {after}")
    return x


@primitive("Broadcast", "BroadcastAxes", "Full", mil="nothing")
def _broadcast_to(b: Builder, n: Node, x: Operand, *_: Operand) -> Operand:
    rank = len(b.shape(n.outputs[0]))
    if len(x.shape) > rank:
        raise Unsupported(n.name, "it drops axes")
    return b.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)


@primitive(
    *"Reshape Flatten Unflatten ExpandDims Squeeze".split(),
    mil="reshape",
)
def _reshape(b: Builder, n: Node, x: Operand) -> Operand:
    before, after = b.shape(n.inputs[0]), b.shape(n.outputs[0])
    whole = isinstance(x, Value) and x.shape == before
    if not whole and n.name in ("ExpandDims", "Squeeze"):
        # Axes of one element come and go: what is broadcast stays so.
        rank = len(b.tape.types[n.inputs[0]].shape)
        kept = list(x.shape[len(x.shape) - rank :]) if rank else []
        end = len(b.tape.types[n.outputs[0]].shape)
        if n.name == "ExpandDims":
            for a in sorted(a % end for a in n.arguments[0]):
                kept.insert(a, 1)
        else:
            gone = {a % rank for a in n.arguments[0]}
            kept = [size for i, size in enumerate(kept) if i not in gone]
        return b.reshape(x, four_axes(tuple(kept)))
    return b.reshape(b.full(n.inputs[0]), after)


@primitive("Transpose", mil="transpose")
def _transpose(b: Builder, n: Node, x: Operand) -> Operand:
    rank = len(n.arguments[0])
    lead = len(x.shape) - rank
    return b.transpose(x, [*range(lead), *(p + lead for p in n.arguments[0])])


@primitive(
    "Reduce", mil="matmul, reduce_max", evidence="matmul is wide (AF)", form="sum"
)
def _reduce(b: Builder, n: Node, x: Operand) -> Operand:
    kind, axes = n.arguments[0], [b.axis(n.inputs[0], a) for a in n.arguments[1]]
    whole = b.shape(n.inputs[0])
    if kind == 2:
        # A sum over an axis that is broadcast is a multiple.
        repeats = math.prod(whole[a] for a in axes if x.shape[a] != whole[a])
        for axis in (a for a in axes if x.shape[a] > 1):
            x = b.sum(x, axis)
        return b.mul(x, float(repeats))
    if kind not in (4, 5):
        raise Unsupported("Reduce", f"kind {kind} is not sum, min or max")
    sign = 1.0 if kind == 5 else -1.0
    for axis in (a for a in axes if x.shape[a] > 1):
        x = b.mul(b.max(b.mul(x, sign), axis), sign)
    return x


@primitive("Scan", mil="matmul", evidence="cumsum is rejected")
def _scan(b: Builder, n: Node, x: Operand) -> Operand:
    kind, axis, backwards, inclusive = n.arguments
    if kind != 2:
        raise Unsupported("Scan", f"kind {kind} is not a sum")
    axis = b.axis(n.inputs[0], axis)
    size = b.shape(n.inputs[0])[axis]
    lower = np.tri(size, k=0 if inclusive else -1)
    return b.along(b.full(n.inputs[0]), axis, lower.T if backwards else lower)


@primitive("Slice", mil="slice_by_size, matmul", form="slice")
def _slice(b: Builder, n: Node, x: Operand) -> Operand:
    whole, part = (b.tape.types[v].shape for v in (n.inputs[0], n.outputs[0]))
    for axis, kept in enumerate(ranges(n.arguments, whole, part)):
        at = b.axis(n.inputs[0], axis)
        if x.shape[at] > 1 or whole[axis] == 1:
            x = b.cut(x, at, kept)
    return x


@primitive("Split", mil="slice_by_size, matmul", form="slice")
def _split(b: Builder, n: Node, x: Operand) -> list[Operand]:
    places, axis = n.arguments
    axis = b.axis(n.inputs[0], axis)
    size = b.shape(n.inputs[0])[axis]
    if isinstance(places, int):
        places = [size // places * i for i in range(1, places)]
    x = b.full(n.inputs[0])
    return [b.cut(x, axis, range(i, j)) for i, j in pairwise([0, *places, size])]


@primitive(
    "Concatenate", mil="matmul, add", evidence="concat is disputed", form="concat"
)
def _concatenate(b: Builder, n: Node, *_: Operand) -> Operand:
    parts = [b.full(v) for v in n.inputs]
    axis = b.axis(n.outputs[0], n.arguments[0])
    if all(isinstance(p, np.ndarray) for p in parts):
        return np.concatenate(parts, axis)  # type: ignore[arg-type]
    shape = b.shape(n.outputs[0])
    if b.forms["concat"] == "concat":
        tensors = [b.port(p) if isinstance(p, np.ndarray) else p for p in parts]
        return b.emit("concat", shape, values=tensors, axis=axis, interleave=False)
    joined: Operand = np.zeros((1,) * len(shape))
    at = 0
    for part in parts:
        size = part.shape[axis]
        if not is_all(part, 0):
            if isinstance(part, np.ndarray):  # full: the table is placed here
                wide = np.zeros(shape)
                wide[(slice(None),) * axis + (slice(at, at + size),)] = part
                joined = b.add(joined, wide)
            else:
                joined = b.add(
                    joined, b.put(part, axis, range(at, at + size), shape[axis])
                )
        at += size
    return joined


@primitive("Pad", mil="matmul", evidence="a product with zeros and ones")
def _pad(b: Builder, n: Node, x: Operand, value: Operand) -> Operand:
    if not is_all(value, 0):
        raise Unsupported("Pad", "the value is not zero")
    x = b.full(n.inputs[0])
    for axis, low, high in zip(*n.arguments[:3], strict=True):
        at = b.axis(n.inputs[0], axis)
        if low or high:
            size = x.shape[at]
            x = b.put(x, at, range(low, low + size), low + size + high)
    return x


@primitive(
    "SliceUpdate", mil="matmul, mul, add", evidence="products with zeros and ones"
)
def _slice_update(b: Builder, n: Node, x: Operand, _: Operand) -> Operand:
    adds = any(isinstance(a, int) and a == 2 for a in n.arguments)
    whole, part = (b.tape.types[v].shape for v in n.inputs)
    at = ranges(n.arguments, whole, part)
    update = b.full(n.inputs[1])
    for axis, kept in enumerate(at):
        where = b.axis(n.inputs[0], axis)
        if len(kept) != whole[axis]:
            update = b.put(update, where, kept, whole[axis])
    if is_all(x, 0):
        return update
    if not adds:
        outside = np.ones(whole)
        outside[np.ix_(*at)] = 0
        x = b.mul(b.full(n.inputs[0]), outside.reshape(b.shape(n.inputs[0])))
    return b.add(x, update)


@primitive("StopGradient", "Copy", "Contiguous", "Depends", mil="nothing")
def _same(b: Builder, n: Node, x: Operand, *_: Operand) -> Operand:
    return x


@primitive("Gather", mil="matmul", evidence="a product with zeros and ones")
def _gather(b: Builder, n: Node, x: Operand, index: Operand) -> Operand:
    axes, sizes = n.arguments
    if isinstance(index, Value) or len(axes) != 1 or sizes[axes[0]] != 1:
        raise Unsupported(
            "Gather", "need constant indices of whole rows along one axis"
        )
    axis, x = b.axis(n.inputs[0], axes[0]), b.full(n.inputs[0])
    chosen = np.eye(x.shape[axis])[index.ravel().astype(int)]
    order = [axis, *(i for i in range(len(x.shape)) if i != axis)]
    taken = b.transpose(b.along(x, axis, chosen), order)
    return b.reshape(taken, b.shape(n.outputs[0]))
