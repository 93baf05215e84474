"""Captures an MLX function as a tape of primitives, ready for the engine.

:func:`capture` exports the function with MLX's own tracer, on a CPU stream and in a
thread of its own, so that random state, default device and streams of the caller are
untouched. It rewrites what the engine likes in another form (`recognise`) and keeps
what does not depend on the data, such as masks, rotation tables, dropout and
dequantised weights, in a *prologue* that MLX runs. (Where those are frozen, the node
that calls the program dequantises them itself.)
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import threading
import types
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from queue import SimpleQueue
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ane._capturing import capture_mode, capturing
from mlx_ane.padding import guard
from mlx_ane.recognise import recognise
from mlx_ane.tape import LAYOUT, Node, Tape, Type, Unsupported

__all__ = ["Captured", "capture", "gradients", "lowered"]

T = TypeVar("T")


@dataclass(frozen=True)
class Leaf:
    """An array of the arguments."""

    path: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    #: Given as an argument, not held by a module.
    data: bool
    #: Axes that are padded with zeros to the rows of the program.
    padded: tuple[int, ...] = ()


@dataclass
class Captured:
    """A function as an MLX prologue and the body that becomes an engine program.

    ``body(*prologue(*leaves))`` is the function: `arguments` makes the body's inputs.
    """

    fun: Callable[..., Any]
    leaves: list[Leaf]
    #: Leaves, closed-over arrays and the random key to the body's inputs.
    prologue: Tape
    #: A pure function of its inputs; floating-point values are float32.
    body: Tape
    #: Inputs of the body that are activations, the first argument first.
    data: list[str]
    #: How often plain MLX would draw from the random state.
    draws: int
    constants: list[mx.array] = field(repr=False)
    #: The result with an index of `body.outputs` in the place of each array.
    result: Any = 0
    #: Rows of the body, if padded, and for each output the axis of its rows.
    rows: int | None = None
    row_axes: list[int] = field(default_factory=list)

    def arguments(self, *args: Any) -> list[mx.array]:
        """The body's inputs for these arguments, as a lazy graph on a CPU stream.

        Args:
            *args: What was given to :func:`capture`, with other values.
        """
        return self.arguments_of(self.flatten(*args), self.draw())

    def flatten(self, *args: Any) -> list[mx.array]:
        """The arrays of these arguments, in the order of `leaves`."""
        return flatten({**dict(enumerate(args)), "fun": self.fun})

    def draw(self) -> list[mx.array]:
        """The random key, if the function draws; plain MLX's state moves on as far."""
        state: Any = mx.random.state
        key = [mx.array(state[0])] if self.draws else []
        for _ in range(self.draws):
            mx.random.uniform(shape=(1,))
        return key

    def arguments_of(
        self,
        arrays: Sequence[mx.array],
        key: Sequence[mx.array],
        stream: Any = mx.cpu,
    ) -> list[mx.array]:
        """The body's inputs from what `flatten` and `draw` gave; padded on a stream."""
        if len(arrays) != len(self.leaves):
            raise ValueError(
                f"[mlx_ane.capture] the arguments hold {len(arrays)} arrays, need the "
                f"{len(self.leaves)} that were captured; capture again."
            )
        with mx.stream(mx.cpu):
            pairs = zip(arrays, self.leaves, strict=True)
            padded = [self._pad(array, leaf, stream) for array, leaf in pairs]
            return self.prologue.run(*padded, *self.constants, *key)

    def valid(self, *args: Any) -> int:
        """How many rows of the arguments are not padding."""
        pairs = zip(self.flatten(*args), self.leaves, strict=True)
        return next(a.shape[leaf.padded[0]] for a, leaf in pairs if leaf.padded)

    def _pad(self, array: mx.array, leaf: Leaf, stream: Any) -> mx.array:
        if not leaf.padded or self.rows is None:
            return array
        missing = [
            self.rows - size if axis in leaf.padded else 0
            for axis, size in enumerate(array.shape)
        ]
        return mx.pad(array, [(0, n) for n in missing], stream=stream)


def lowered(body: Tape) -> Tape:
    """A body as a tape of MLX's primitives, of the same inputs."""
    of = [body.types[v] for v in body.inputs]
    paths = [body.paths.get(v, "") for v in body.inputs]
    return _apart(lambda: fold(export(body.run, of, paths)))


def gradients(body: Tape, wanted: Sequence[int]) -> Tape:
    """The vector-Jacobian product of a body, as a tape of MLX's primitives.

    Args:
        body (Tape): Of `Captured`.
        wanted: Indices of its inputs.

    Returns:
        Tape: From one cotangent an output, then the body's inputs, to a gradient for
        each of `wanted`.
    """
    n = len(body.outputs)

    def function(*arrays: mx.array) -> list[mx.array]:
        cotangents, inputs = arrays[:n], list(arrays[n:])

        def partial(*changed: mx.array) -> list[mx.array]:
            full = list(inputs)
            for index, array in zip(wanted, changed, strict=True):
                full[index] = array
            return body.run(*full)

        return list(mx.vjp(partial, [inputs[i] for i in wanted], list(cotangents))[1])

    of = [body.types[v] for v in body.outputs + body.inputs]
    paths = ["dy"] * n + [body.paths.get(v, "") for v in body.inputs]
    return _apart(lambda: fold(export(function, of, paths)))


def capture(
    fun: Callable[..., Any],
    *args: Any,
    rows: int | None = None,
    all_data: bool = False,
) -> Captured:
    """Capture ``fun(*args)`` for arguments of these shapes.

    Args:
        fun (callable): A function of MLX ops; it is called once, with tracers.
            Arrays and modules that it closes over are inputs too.
        *args: Arrays and other values, and modules, in lists, tuples and dicts. Every
            array in them, those of modules included, is an input: arguments may be
            tracers. Modules are copied, not changed.
        rows (int, optional): Rows of the program: the last but one axis of the first
            array, and the axes of that size of masks, are padded with zeros to it.
        all_data (bool): Whether integer arguments and masks are data of the body too,
            instead of the prologue's.

    Returns:
        Captured: The function's prologue and body.

    Raises:
        Unsupported: MLX cannot export one of its primitives, or padded rows may reach
            valid ones.
    """
    leaves: list[Leaf] = []

    def note(path: str, array: mx.array, data: bool) -> mx.array:
        leaves.append(Leaf(path, tuple(array.shape), array.dtype, data))
        return array

    tree: dict[Any, Any] = {**dict(enumerate(args)), "fun": fun}
    rebuild(tree, note)
    if rows is None:
        return _apart(lambda: _capture(fun, tree, leaves, all_data=all_data))
    padded = _padded(leaves)
    size = next((leaf.shape[leaf.padded[0]] for leaf in padded if leaf.padded), rows)
    if size > rows:
        raise ValueError(f"[mlx_ane.capture] rows is {rows}, need {size} or more.")
    return _apart(lambda: _capture_padded(fun, tree, leaves, padded, size, rows))


def rows_of(tree: Any) -> int:
    """Rows of the first array that has them, of those not held by modules; or 0."""
    sizes: list[int] = []

    def note(_: str, array: mx.array, data: bool) -> mx.array:
        if data and array.ndim > 1:
            sizes.append(array.shape[-2])
        return array

    rebuild(tree, note)
    return sizes[0] if sizes else 0


def _padded(leaves: list[Leaf]) -> list[Leaf]:
    """The leaves with their axes of rows: those of the first array and of masks."""
    first = next((leaf for leaf in leaves if leaf.data and len(leaf.shape) > 1), None)
    if first is None:
        raise Unsupported("Padding", "no argument has rows")
    size = first.shape[-2]

    def axes(leaf: Leaf) -> tuple[int, ...]:
        rank = len(leaf.shape)
        last = (rank - 2,) if leaf is first else range(max(rank - 2, 0), rank)
        return tuple(i for i in last if leaf.data and leaf.shape[i] == size)

    return [replace(leaf, padded=axes(leaf)) for leaf in leaves]


def _capture_padded(
    fun: Callable[..., Any],
    tree: dict[Any, Any],
    leaves: list[Leaf],
    padded: list[Leaf],
    size: int,
    rows: int,
) -> Captured:
    exact, wide = _capture(fun, tree, leaves), _capture(fun, tree, padded, rows)
    if wide.draws:
        raise Unsupported("Padding", "random numbers depend on the number of rows")
    axes = {
        v: leaf.padded
        for v, leaf in zip(wide.prologue.inputs, padded, strict=False)
        if leaf.padded
    }
    # The prologue ends where the body begins: both are one proof.
    joined, found, masks = guard(_joined(wide), _joined(exact), axes, size, rows)
    mx.eval(list(masks.values()))  # they belong to this thread
    prologue, body = _split(joined, wide.data)
    return replace(
        wide,
        prologue=prologue,
        body=body,
        constants=[*wide.constants, *masks.values()],
        data=[v for v in wide.data if v in body.inputs],
        rows=rows,
        row_axes=found,
    )


def _joined(captured: Captured) -> Tape:
    """Prologue and body as one tape again."""
    prologue, body = captured.prologue, captured.body
    return replace(
        body,
        inputs=prologue.inputs,
        nodes=[*prologue.nodes, *body.nodes],
        constants=prologue.constants | body.constants,
        paths=prologue.paths,
    ).live()


def _capture(
    fun: Callable[..., Any],
    tree: dict[Any, Any],
    leaves: list[Leaf],
    rows: int | None = None,
    all_data: bool = False,
) -> Captured:
    result: list[Any] = []

    def traced(*arrays: mx.array) -> list[mx.array]:
        rest = iter(arrays)
        outputs: list[mx.array] = []

        def number(_: str, array: mx.array, __: bool) -> Any:
            outputs.append(array)
            return len(outputs) - 1

        *given, function = rebuild(tree, lambda *_: next(rest)).values()
        value = function(*given)
        result.append(rebuild(value, number))
        state: Any = mx.random.state
        return [*outputs, mx.array(state[0])]

    def shape(leaf: Leaf) -> tuple[int, ...]:
        sizes = enumerate(leaf.shape)
        return tuple(rows or n if i in leaf.padded else n for i, n in sizes)

    mx.random.seed(0x0A4E)
    state: Any = mx.random.state
    key = mx.array(state[0])
    mx.eval(key)
    of = [Type(shape(leaf), _computed(leaf.dtype)) for leaf in leaves]
    tape = export(traced, of, [leaf.path for leaf in leaves])
    data = [
        v
        for v, leaf in zip(tape.inputs, leaves, strict=True)
        if leaf.data and (all_data or mx.issubdtype(leaf.dtype, mx.floating))
    ]
    draws = _open_random_state(tape, key)
    constants = _open_constants(tape, draws)
    tape = fold(recognise(fold(tape)))
    masks = {v for v in data[1:] if not all_data and _is_mask(tape, v)}
    data = [v for v in data if v not in masks]
    prologue, rest = _split(tape, data)
    used = [v for v in data if v in rest.inputs]
    return Captured(fun, leaves, prologue, rest, used, draws, constants, result[0])


def flatten(tree: Any) -> list[mx.array]:
    """The arrays of a tree, modules' own included, in the order of capture."""
    arrays: list[mx.array] = []

    def note(_: str, array: mx.array, __: bool) -> mx.array:
        arrays.append(array)
        return array

    rebuild(tree, note)
    return arrays


def export(
    fun: Callable[..., list[mx.array]], of: Sequence[Type], paths: Sequence[str]
) -> Tape:
    """The tape of a function of arrays, by MLX's own export."""
    events: list[dict[str, Any]] = []
    examples = [mx.zeros(t.shape, dtype=t.dtype) for t in of]
    try:
        mx.export_function(events.append, fun, *examples)
    except (ValueError, RuntimeError) as error:
        if "[eval] Attempting" in str(error):
            raise Unsupported(
                "Eval", "the function reads a value of a tracer"
            ) from error
        name = str(error).rpartition("primitive ")[2]
        if name == str(error):
            raise
        raise Unsupported(name, "MLX cannot export it") from error
    tape = Tape([], [], [], {}, {})

    def note(values: Sequence[tuple[str, Any, mx.Dtype]]) -> tuple[str, ...]:
        for name, shape, dtype in values:
            tape.types[name] = Type(tuple(shape), dtype)
        return tuple(name for name, _, _ in values)

    for event in events:
        kind = event["type"]
        if kind == "inputs":
            tape.inputs = list(note(event["inputs"]))
        elif kind == "outputs":
            tape.outputs = list(note(event["outputs"]))
        elif kind == "constants":
            tape.constants = dict(event["constants"])
            note([(v, a.shape, a.dtype) for v, a in event["constants"]])
        elif kind == "primitive":
            ins, outs = note(event["inputs"]), note(event["outputs"])
            arguments = tuple(event["arguments"])
            tape.nodes.append(Node(event["name"], arguments, ins, outs))
    tape.paths = dict(zip(tape.inputs, paths, strict=True))
    return tape


def fold(tape: Tape) -> Tape:
    """Compute what depends on constants alone; drop copies, repeats and dead nodes."""
    constants, nodes = dict(tape.constants), []
    alias: dict[str, str] = {}  # to an equal value
    known: dict[Any, tuple[str, ...]] = {}
    values: dict[str, mx.array] = {}  # broadcast constants too

    for value, array in tape.constants.items():
        (first,) = known.setdefault(_content(array), (value,))
        if first != value:
            alias[value] = first
        constants[first] = values[first] = array
    for node in tape.live().nodes:
        ins = tuple(alias.get(v, v) for v in node.inputs)
        node = replace(node, inputs=ins)
        key = (node.name, repr(node.arguments), ins, tape.types[node.outputs[0]])
        constant = all(v in values for v in ins)
        if _is_copy(tape, node):
            alias[node.outputs[0]] = ins[0]
        elif key in known and node.name != "RandomBits":
            alias.update(zip(node.outputs, known[key], strict=True))
        elif constant and node.name not in ("Broadcast", "Full"):
            alone = Tape([], list(node.outputs), [node], values, tape.types)
            computed = dict(zip(node.outputs, alone.run(), strict=True))
            constants |= computed
            values |= computed
            known[key] = node.outputs
        else:
            if constant:
                array = mx.broadcast_to(
                    values[ins[0]], tape.types[node.outputs[0]].shape
                )
                values[node.outputs[0]] = array
            known[key] = node.outputs
            nodes.append(node)
    outputs = [alias.get(v, v) for v in tape.outputs]
    folded = replace(tape, nodes=nodes, outputs=outputs, constants=constants).live()
    mx.eval(list(folded.constants.values()))  # they belong to this thread
    return folded


def signature(tape: Tape) -> str:
    """What tapes of one function of one shape have in common, as a digest."""
    used = {v for n in tape.nodes for v in (*n.inputs, *n.outputs)} | set(tape.inputs)
    of = {v: (t.shape, str(t.dtype)) for v, t in tape.types.items() if v in used}
    held = {v: _content(a) for v, a in tape.constants.items()}
    everything = (tape.inputs, tape.outputs, tape.nodes, of, held)
    return hashlib.sha256(repr(everything).encode()).hexdigest()


def _content(array: mx.array) -> Any:
    wide = array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
    digest = hashlib.sha256(np.array(wide).tobytes()).hexdigest()
    return (str(array.dtype), array.shape, digest)


def _is_copy(tape: Tape, node: Node) -> bool:
    if node.name == "AsType":
        before, after = tape.types[node.inputs[0]], tape.types[node.outputs[0]]
        return before.dtype == after.dtype
    return node.name in ("Copy", "Contiguous", "Depends")


def _computed(dtype: mx.Dtype) -> mx.Dtype:
    # The engine rounds to fp16 anyway: one program serves every float type.
    return mx.float32 if mx.issubdtype(dtype, mx.floating) else dtype


@cache
def _tasks() -> SimpleQueue[Callable[[], None]]:
    """Tasks of one thread for all captures.

    MLX keeps a worker for each thread that used a stream, so there is only one. It is
    never joined: what MLX holds for a thread must not be freed while Python ends.
    """
    tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve() -> None:
        while True:
            tasks.get()()

    threading.Thread(target=serve, name="mlx_ane.capture", daemon=True).start()
    return tasks


os.register_at_fork(after_in_child=_tasks.cache_clear)


def _apart(function: Callable[[], T]) -> T:
    """Run in a thread of our own: random state, streams and traces are a thread's."""
    if capturing():
        return function()
    done: Future[T] = Future()

    def run() -> None:
        try:
            with capture_mode(), mx.stream(mx.cpu):
                done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    _tasks().put(run)
    return done.result()


Leaves = Callable[[str, mx.array, bool], Any]


def rebuild(tree: Any, leaf: Leaves) -> Any:
    """A copy of a tree with leaf(path, array, data) in the place of each array.

    Containers, modules and objects such as caches are copied, so that a function may
    write to them.
    """
    return _Rebuilder(leaf).walk(tree, "", True)


class _Rebuilder:
    """Copies a tree.

    Not nested functions, which hold each other: arrays would wait for the garbage
    collector, and an optimizer could not update them in place.
    """

    def __init__(self, leaf: Leaves) -> None:
        self.leaf = leaf
        self.seen: dict[int, Any] = {}

    def items(self, values: dict[Any, Any], path: str, data: bool) -> dict[Any, Any]:
        dot = path + "." if path else ""
        return {k: self.walk(v, f"{dot}{k}", data) for k, v in values.items()}

    def walk(self, value: Any, path: str, data: bool) -> Any:
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, mx.array):
            new: Any = self.leaf(path, value, data)
        elif isinstance(value, nn.Module):
            new = dict.__new__(_without_checkpoint(type(value)))
            self.seen[id(value)] = new  # before its children: they may point back
            dict.update(new, self.items(value, path, False))
            new.__dict__.update(self.items(value.__dict__, path, False))
        elif type(value) is dict:
            new = self.items(value, path, data)
        elif isinstance(value, (list, tuple)):
            parts = self.items(dict(enumerate(value)), path, data).values()
            named = hasattr(value, "_fields")
            new = type(value)(*parts) if named else type(value)(parts)
        elif isinstance(value, types.FunctionType) and value.__closure__:
            return self.function(value, path)
        elif isinstance(value, types.MethodType):
            return types.MethodType(
                value.__func__, self.walk(value.__self__, path, False)
            )
        elif _has_state(value):
            new = self.seen[id(value)] = copy.copy(value)
            new.__dict__.update(self.items(value.__dict__, path, data))
        else:
            return value
        self.seen[id(value)] = new
        return new

    def function(self, value: types.FunctionType, path: str) -> types.FunctionType:
        self.seen[id(value)] = value  # it may close over itself
        names = value.__code__.co_freevars
        cells = dict(zip(names, value.__closure__ or (), strict=True))
        filled = {k: c.cell_contents for k, c in cells.items() if _is_filled(c)}
        new = self.items(filled, path, False)
        if all(new[k] is filled[k] for k in new):
            return value
        cells |= {k: types.CellType(v) for k, v in new.items()}
        copied = types.FunctionType(
            value.__code__,
            value.__globals__,
            value.__name__,
            value.__defaults__,
            tuple(cells.values()),
        )
        copied.__kwdefaults__ = value.__kwdefaults__
        return copied


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _has_state(value: Any) -> bool:
    kinds = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    plain = type(value).__copy__ if hasattr(type(value), "__copy__") else None
    return hasattr(value, "__dict__") and plain is None and not isinstance(value, kinds)


def _without_checkpoint(cls: type) -> type:
    """The class with the __call__ that mlx-lm's grad_checkpoint replaced."""
    call = original = cls.__call__
    while (
        getattr(call, "__qualname__", "") == "grad_checkpoint.<locals>.checkpointed_fn"
    ):
        call = inspect.getclosurevars(call).nonlocals["fn"]
    if call is original:
        return cls
    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})


def _open_random_state(tape: Tape, key: mx.array) -> int:
    """Make the random key an input, if it is used; return how often it was drawn."""
    state, producers, draws = tape.outputs.pop(), tape.producers(), 0
    while state in producers:
        draws += producers[state].name == "RandomBits"
        state = producers[state].inputs[0]
    if draws:
        del tape.constants[state]
        tape.inputs.append(state)
        tape.paths[state] = "random"
    return draws


def _open_constants(tape: Tape, draws: int) -> list[mx.array]:
    """Make arrays that are neither arguments nor numbers inputs: do not fold them.

    They are arrays of globals and literals, and what a trace around this one made.
    """
    opened = []
    key = [tape.inputs.pop()] if draws else []
    for value, array in list(tape.constants.items()):
        try:
            mx.eval(array)
            if array.size == 1:
                continue
        except (RuntimeError, ValueError):
            pass  # a tracer, or lazy on another thread's stream
        opened.append(tape.constants.pop(value))
        tape.inputs.append(value)
        tape.paths[value] = "constant"
    tape.inputs += key
    return opened


def _is_mask(tape: Tape, value: str) -> bool:
    """Whether an argument is only added to scores: then the prologue prepares it."""
    return all(n.name == "Floored" for n in tape.nodes if value in n.inputs)


def _split(tape: Tape, data: list[str]) -> tuple[Tape, Tape]:
    """What does not depend on `data`, and the rest.

    Rearrangements of an input stay in the rest: there they cost nothing.
    """
    dependent, producers = tape.reached_from(data), tape.producers()

    def border(value: str) -> bool:  # computed by the prologue
        node = producers.get(value)
        return (
            value not in dependent
            and node is not None
            and (node.name not in LAYOUT or _is_cast(tape, node))
        )

    needed = list(tape.outputs)
    for value in needed:
        if value in producers and not border(value):
            needed += [v for v in producers[value].inputs if v not in needed]
    inputs = [v for v in tape.inputs if v in needed]
    inputs += [v for v in needed if border(v)]
    first = [v for v in data if v in inputs]
    inputs = first + [v for v in inputs if v not in first]
    prologue = tape.live(inputs)
    body = tape.live(inputs=inputs)
    body.paths = {v: tape.paths.get(v, "prologue") for v in inputs}
    return prologue, body


def _is_cast(tape: Tape, node: Node) -> bool:
    """Whether the node makes a float of an integer or boolean value."""
    before, after = (tape.types[v].dtype for v in (node.inputs[0], node.outputs[0]))
    return bool(mx.issubdtype(before, mx.floating) != mx.issubdtype(after, mx.floating))


def output_dtypes(fun: Callable[..., Any], *args: Any) -> list[mx.Dtype]:
    """Dtypes of the arrays that ``fun(*args)`` returns, without running it."""
    of: list[Type] = []
    rebuild(
        {**dict(enumerate(args)), "fun": fun},
        lambda _, a, __: of.append(Type(tuple(a.shape), a.dtype)),
    )

    def traced(*arrays: mx.array) -> list[mx.array]:
        rest = iter(arrays)
        outputs: list[mx.array] = []
        *given, function = rebuild(
            {**dict(enumerate(args)), "fun": fun}, lambda *_: next(rest)
        ).values()
        rebuild(function(*given), lambda _, a, __: outputs.append(a))
        return outputs

    tape = _apart(lambda: export(traced, of, [""] * len(of)))
    return [tape.types[v].dtype for v in tape.outputs]
