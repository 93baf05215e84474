"""A captured function as engine programs: what the engine does and what the host does.

A `BlockProgram` says everything a caller needs: which inputs go into which port, which
products stay on the host, what is added there in fp32, and what scales with the
cotangent. `BlockProgram.run` is the reference: the program on the emulated engine, the
host's part in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_ane import _ext, emulated
from mlx_ane.builder import Program
from mlx_ane.capture import Captured, capture, gradients, lowered, signature
from mlx_ane.tape import Node, Tape, Type
from mlx_ane.translate import translate

__all__ = ["Block", "BlockProgram", "Gemm", "Operand", "Output"]

Array = npt.NDArray[Any]

#: Where the largest cotangent lies after scaling: past 2,048 a backward program
#: overflows, below 1/64 it loses everything in exact numerics.
COTANGENT = 16.0
#: A gradient with an axis this short is cheaper on the engine than its operands' move.
SHORT = 64


@dataclass(frozen=True)
class Operand:
    """A matrix of a host product: a result of the program, or one of its inputs."""

    #: Index into the program's results, or None.
    result: int | None
    #: Index into the inputs, or None.
    source: int | None
    #: (rows, columns), row-major, before the transpose.
    shape: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True)
class Gemm:
    """A product on the host: ``left @ right``, fp32."""

    left: Operand
    right: Operand


@dataclass(frozen=True)
class Output:
    """How to make one output: the sum of what is given here."""

    shape: tuple[int, ...]
    #: Index into the program's results.
    result: int | None = None
    #: Products on the host.
    gemms: tuple[Gemm, ...] = ()
    #: Index of an input that is added in fp32, unscaled.
    residual: int | None = None


@dataclass(frozen=True)
class BlockProgram:
    """A program and the host's part of one function of a block."""

    program: Program
    outputs: list[Output]
    #: What the program computes, as MLX's primitives.
    tape: Tape
    #: The first inputs of a backward program: the caller multiplies them by one power
    #: of two, and divides by it what is `scaled`. Exact, for a gradient is linear.
    cotangents: int = 0
    #: For each result of the program, whether it is linear in the cotangents.
    scaled: tuple[bool, ...] = ()

    @cached_property
    def handle(self) -> Any:
        """The program of the extension: one, whatever calls it."""
        program = self.program
        inputs = [
            (
                port.name,
                list(port.shape),
                [(part.source, part.row, part.transposed) for part in port.parts],
                None
                if port.table is None
                else np.ascontiguousarray(port.table, np.float16).view(np.uint16),
            )
            for port in program.ports
        ]
        results = [
            (r.name, list(r.port), r.shape[-1] if r.shape else 1, scaled)
            for r, scaled in zip(program.results, self.scaled, strict=True)
        ]
        return _ext.block.program(program.mil.handle, inputs, results, self.cotangents)

    def run(
        self,
        arrays: Sequence[Array],
        *,
        chip: str = "h16g",
        numerics: str = "fast",
        allow: Sequence[str] = (),
    ) -> list[Array]:
        """The outputs, float32, computed on the emulated engine.

        Args:
            arrays: One an input of the tape.
            chip (str): Architecture whose strict limits hold.
            numerics (str): "fast" or "exact", as `emulated.run`'s.
            allow: Rules that are not enforced.
        """
        scale = self._scale(arrays)
        given = [a * scale if i < self.cotangents else a for i, a in enumerate(arrays)]
        dialect = "ios16" if chip in ("h13", "h14") else "ios18"
        engine = emulated.Program(
            self.program.text(dialect),
            chip=chip,
            limits="strict",
            allow={*allow, "compiles"},  # how many a process compiles is its own affair
        )
        results = self.program.unpack(
            engine(self.program.pack(given), numerics=numerics)
        )
        unscaled = [
            r / scale if linear else r
            for r, linear in zip(results, self.scaled, strict=True)
        ]
        return [self._output(output, unscaled, arrays) for output in self.outputs]

    def _scale(self, arrays: Sequence[Array]) -> float:
        largest = max(
            [float(np.abs(a).max()) for a in arrays[: self.cotangents]] or [0]
        )
        return 2.0 ** math.floor(math.log2(COTANGENT / largest)) if largest else 1.0

    def _output(
        self, output: Output, results: list[Array], arrays: Sequence[Array]
    ) -> Array:
        y = np.zeros(output.shape, np.float32)
        if output.result is not None:
            y = y + results[output.result]
        for gemm in output.gemms:
            sides = (_matrix(o, results, arrays) for o in (gemm.left, gemm.right))
            y = y + np.matmul(*sides)
        if output.residual is not None:
            y = y + arrays[output.residual]
        return y


def _matrix(operand: Operand, results: list[Array], arrays: Sequence[Array]) -> Array:
    if operand.result is not None:
        array = results[operand.result]
    else:
        array = arrays[operand.source or 0]
    matrix = array.reshape(operand.shape)
    return matrix.T if operand.transposed else matrix


class Block:
    """A function of a module and its data, with a forward and backward programs.

    Args:
        fun (callable): See `capture`.
        *args: See `capture`.
        rows (int, optional): See `capture`.
        **forms (str): See `translate`.

    Example:
        >>> from mlx import nn
        >>> from mlx_ane.block import Block
        >>> layer, x = nn.Linear(32, 32), mx.ones((1, 64, 32))
        >>> block = Block(lambda layer, x: x + layer(x), layer, x)
        >>> block.forward.outputs[0].residual
        0
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        *args: Any,
        rows: int | None = None,
        **forms: str,
    ) -> None:
        self.captured: Captured = capture(fun, *args, rows=rows)
        self.forms = tuple(sorted(forms.items()))
        body = self.captured.body
        self._body = _Body(signature(body), body)
        data = tuple(body.inputs.index(v) for v in self.captured.data)
        self.forward = _forward(self._body, data, self.forms)

    @property
    def differentiable(self) -> tuple[int, ...]:
        """Indices of the body's inputs that have a gradient."""
        body = self.captured.body
        floats = [mx.issubdtype(body.types[v].dtype, mx.floating) for v in body.inputs]
        return tuple(i for i, is_float in enumerate(floats) if is_float)

    def backward(self, wanted: Sequence[int]) -> BlockProgram:
        """The program of the gradients of some of the body's inputs."""
        return _backward(self._body, tuple(wanted), self.forms)

    def __call__(self, *args: Any, **options: Any) -> list[Array]:
        """The outputs by the reference; options are those of `BlockProgram.run`."""
        captured = self.captured
        outputs = self.forward.run(_numpy(captured.arguments(*args)), **options)
        if captured.rows is None:
            return outputs
        size = captured.valid(*args)
        return [
            y.take(range(size), axis)
            for y, axis in zip(outputs, captured.row_axes, strict=True)
        ]

    def gradients(
        self, args: Sequence[Any], cotangents: Sequence[Array], **options: Any
    ) -> dict[str, Array]:
        """Gradients of all floating-point arrays in the arguments, by path."""
        captured, wanted = self.captured, self.differentiable
        leaves, key = captured.flatten(*args), captured.draw()
        inputs = captured.arguments_of(leaves, key)
        back = self.backward(wanted)
        shapes = [captured.body.types[v].shape for v in captured.body.outputs]
        padded = [
            np.pad(c, [(0, n - m) for n, m in zip(shape, c.shape, strict=True)])
            for c, shape in zip(cotangents, shapes, strict=True)
        ]
        found = back.run([*padded, *_numpy(inputs)], **options)
        floats = [
            i for i, a in enumerate(leaves) if mx.issubdtype(a.dtype, mx.floating)
        ]

        def prologue(*changed: mx.array) -> list[mx.array]:
            arrays = list(leaves)
            for i, array in zip(floats, changed, strict=True):
                arrays[i] = array
            made = captured.arguments_of(arrays, key)
            return [made[i] for i in wanted]

        with mx.stream(mx.cpu):
            _, total = mx.vjp(
                prologue, [leaves[i] for i in floats], [mx.array(g) for g in found]
            )
        return {
            captured.leaves[i].path: np.array(g.astype(mx.float32))
            for i, g in zip(floats, total, strict=True)
        }


@dataclass(frozen=True)
class _Body:
    """A tape that equals another if their programs are one."""

    signature: str
    tape: Tape = field(compare=False, repr=False)


Forms = tuple[tuple[str, str], ...]


@lru_cache(256)
def _forward(body: _Body, data: tuple[int, ...], forms: Forms) -> BlockProgram:
    return forward_program(lowered(body.tape), data, **dict(forms))


@lru_cache(256)
def _backward(body: _Body, wanted: tuple[int, ...], forms: Forms) -> BlockProgram:
    tape = gradients(body.tape, wanted)
    return backward_program(tape, len(body.tape.outputs), **dict(forms))


def _numpy(arrays: Sequence[mx.array]) -> list[Array]:
    return [np.array(a.astype(mx.float32)) for a in arrays]


def forward_program(tape: Tape, data: Sequence[int], **forms: str) -> BlockProgram:
    """A program whose residual, if it has one, is added on the host.

    Args:
        tape (Tape): Of MLX's primitives.
        data: Indices of the inputs that may be a residual.
        **forms (str): See `translate`.
    """
    tape, residuals = _peel(tape, [tape.inputs[i] for i in data])
    outputs = [
        Output(tape.types[v].shape, i, (), residual)
        for i, (v, residual) in enumerate(zip(tape.outputs, residuals, strict=True))
    ]
    program = translate(tape, **forms)
    return BlockProgram(program, outputs, tape, scaled=(False,) * len(outputs))


def backward_program(tape: Tape, cotangents: int, **forms: str) -> BlockProgram:
    """A program for gradients; those of matrices become products on the host.

    Args:
        tape (Tape): From cotangents and inputs to gradients.
        cotangents (int): How many inputs are cotangents.
        **forms (str): See `translate`.
    """
    tape, residuals = _peel(tape, tape.inputs[:cotangents])
    split = _HostProducts(tape)
    linear = tape.reached_from(tape.inputs[:cotangents])
    outputs = [
        # What the cotangents do not reach is zero.
        replace(
            split.output(v) if v in linear else Output(tape.types[v].shape),
            residual=residual,
        )
        for v, residual in zip(tape.outputs, residuals, strict=True)
    ]
    scaled = tuple(v in linear for v in split.results)
    engine = replace(tape, outputs=split.results).live()
    return BlockProgram(translate(engine, **forms), outputs, engine, cotangents, scaled)


def _peel(tape: Tape, candidates: list[str]) -> tuple[Tape, list[int | None]]:
    """Take an input off each sum that is an output: x + delta becomes delta.

    Returns the tape without them, and for each output the index of what to add.
    """
    tape = replace(tape, nodes=list(tape.nodes), types=dict(tape.types))
    producers = tape.producers()
    residuals: list[int | None] = []
    outputs = []
    for output in tape.outputs:
        terms, of = [], tape.types[output]
        queue = [output]
        while queue:
            value = queue.pop(0)
            node = producers.get(value)
            if node is not None and node.name == "Add" and _same(tape, node, of):
                queue = [*node.inputs, *queue]
            else:
                terms.append(value)
        found = [v for v in candidates if terms.count(v) == 1 and len(terms) > 1]
        residuals.append(tape.inputs.index(found[0]) if found else None)
        if found:
            terms.remove(found[0])
            output = terms[0]
            for term in terms[1:]:
                total = tape.like(output, of)
                tape.nodes.append(Node("Add", (), (output, term), (total,)))
                output = total
        outputs.append(output)
    return replace(tape, outputs=outputs).live(), residuals


def _same(tape: Tape, node: Node, of: Type) -> bool:
    return all(tape.types[v].shape == of.shape for v in node.inputs)


class _HostProducts:
    """Moves the products behind weights' gradients to the host."""

    def __init__(self, tape: Tape) -> None:
        self.tape, self.producers = tape, tape.producers()
        #: What the program returns: gradients and operands of host products.
        self.results: list[str] = []

    def output(self, value: str) -> Output:
        """How to make a gradient."""
        shape = self.tape.types[value].shape
        products = self._products(value, False)
        if products is None or any(map(self._is_small, products)):
            return Output(shape, self._result(value))
        return Output(
            shape,
            gemms=tuple(
                Gemm(self._operand(left, lt), self._operand(right, rt))
                for left, lt, right, rt in products
            ),
        )

    def _products(
        self, value: str, turned: bool
    ) -> list[tuple[str, bool, str, bool]] | None:
        """The value as a sum of products of two matrices, each perhaps transposed."""
        node = self.producers.get(value)
        if node is None or len(self.tape.types[value].shape) != 2:
            return None
        if node.name == "Transpose":
            return self._products(node.inputs[0], not turned)
        if node.name == "Add" and _same(self.tape, node, self.tape.types[value]):
            parts = [self._products(v, turned) for v in node.inputs]
            if any(p is None for p in parts):
                return None
            return [product for part in parts for product in part or ()]
        if node.name == "Matmul":
            (a, at), (b, bt) = (self._turned(v) for v in node.inputs)
            return [(b, not bt, a, not at)] if turned else [(a, at, b, bt)]
        return None

    def _turned(self, value: str) -> tuple[str, bool]:
        node, turned = self.producers.get(value), False
        while node is not None and node.name == "Transpose":
            value, turned = node.inputs[0], not turned
            node = self.producers.get(value)
        return value, turned

    def _is_small(self, product: tuple[str, bool, str, bool]) -> bool:
        left, left_turned, right, right_turned = product
        rows, depth = self.tape.types[left].shape[:: -1 if left_turned else 1]
        columns = self.tape.types[right].shape[0 if right_turned else 1]
        largest = depth * max(rows, columns)
        return min(rows, columns) <= SHORT and rows * columns < largest / 2

    def _operand(self, value: str, transposed: bool) -> Operand:
        shape = self.tape.types[value].shape
        source = value
        while (node := self.producers.get(source)) and node.name in (
            "Reshape",
            "Flatten",
            "Unflatten",
        ):
            source = node.inputs[0]
        if source in self.tape.inputs:
            index = self.tape.inputs.index(source)
            return Operand(None, index, shape, transposed)
        return Operand(self._result(value), None, shape, transposed)

    def _result(self, value: str) -> int:
        if value not in self.results:
            self.results.append(value)
        return self.results.index(value)
