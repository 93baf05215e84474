"""compile(): an MLX function whose forward and backward are engine programs."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ane import _ext
from mlx_ane._capturing import capturing
from mlx_ane._device import resolve
from mlx_ane.block import Block, BlockProgram, Operand
from mlx_ane.capture import output_dtypes, rows_of
from mlx_ane.recognise import MODES, dequantised
from mlx_ane.tape import Node, Unsupported
from mlx_ane.translate import choose

__all__ = ["compile"]

Arrays = list[mx.array]

#: Rows of programs: a call of fewer is padded, where padding provably reaches nothing.
BUCKETS = (64, 128, 256, 512, 1024, 2048)


def compile(
    fun: Callable[..., Any],
    inputs: Any = None,
    *,
    device: str | None = None,
) -> Callable[..., Any]:
    """A function that runs as one program on the engine, and its gradient as another.

    Mirrors :func:`mlx.core.compile`. Each new combination of shapes is captured and
    translated once; what cannot be a program raises at the call. On device "cpu" the
    function itself runs.

    Args:
        fun (callable): A function of arrays, and of modules in lists, tuples and
            dicts. Arrays may be float32, float16 or bfloat16; the engine computes in
            fp16.
        inputs (optional): Modules that ``fun`` closes over, as in mx.compile: their
            arrays are read at each call and get gradients.
        device (str, optional): "auto", "ane", "emulated" or "cpu"; None follows
            :func:`mlx_ane.default_device`.

    Returns:
        callable: With the arguments and results of ``fun``, differentiable in every
        array that it is given.

    Raises:
        ValueError: If ``fun`` closes over a module that is not in ``inputs``.

    Example:
        >>> layer = nn.Linear(64, 64)
        >>> step = ane.compile(lambda x: x + layer(x), layer, device="emulated")
        >>> step(mx.ones((1, 64, 64))).shape
        (1, 64, 64)
    """
    if device is not None:
        resolve(device, "compile")
    _check_closure(fun, inputs)
    name = getattr(fun, "__name__", type(fun).__name__)
    blocks: Blocks = {}

    @functools.wraps(fun)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        place = resolve(device, "compile")
        if place == "cpu" or capturing():
            return fun(*args, **kwargs)
        return call(
            fun, args, kwargs, device=place, name=name, blocks=blocks, plain=fun
        )

    return compiled


def _check_closure(fun: Callable[..., Any], inputs: Any) -> None:
    known = {id(m) for root in _modules(inputs) for m in root.modules()}
    for module in _modules(_closed_over(fun)):
        if id(module) not in known:
            raise ValueError(
                f"[mlx_ane.compile] fun closes over a {type(module).__name__} that is "
                f"not in inputs; pass it there, or as an argument."
            )


def _modules(tree: Any) -> list[nn.Module]:
    if isinstance(tree, nn.Module):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [m for item in tree for m in _modules(item)]
    return []


def call(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    device: str,
    name: str,
    blocks: Blocks,
    plain: Callable[..., Any],
) -> Any:
    """``fun(*args, **kwargs)`` as a program, captured at the first such call.

    Args:
        fun (callable): A function of arrays and modules.
        args: Its arguments.
        kwargs: Its keyword arguments.
        device (str): An engine.
        name (str): Of the layer, for counters and errors.
        blocks (dict): Blocks captured so far, of this function or of others.
        plain (callable): Called instead, and counted, where the device has no room
            for another program.

    Raises:
        Unsupported: If it cannot be a program.
    """
    block = block_of(fun, args, kwargs, blocks, right_forms(device))
    if not _ext.block.admits(block.forward.handle, device):
        _ext.block.place(name, "over_budget")
        return plain(*args, **kwargs)
    captured = block.captured
    # What a block's dx passes runs on the engine's stream: the other has the dW.
    stream = _ext.block.stream(device)
    arrays = captured.flatten(args, kwargs)
    given = captured.arguments_of(arrays, captured.draw(), stream)
    frozen = block.frozen(args, kwargs)
    # The node dequantises frozen weights itself, when it stages them.
    packed = {i: node for i, node in block.quantised.items() if frozen[i]}
    leaves = dict(zip(captured.prologue.inputs, arrays, strict=False))
    for i, node in packed.items():
        given[i], *rest = (leaves[v] for v in node.inputs)
        given += rest
    outputs = block.node(
        block.forward,
        given,
        [
            (output.shape, dtype, output.residual)
            for output, dtype in zip(block.forward.outputs, block.dtypes, strict=True)
        ],
        frozen,
        packed,
        _Forward(block, frozen, packed, device, name),
        device,
        name,
        stream,
    )
    if captured.rows is not None:
        size = captured.valid(args, kwargs)
        with mx.stream(stream):
            outputs = [
                y[(*[slice(None)] * axis, slice(size))]
                for y, axis in zip(outputs, captured.row_axes, strict=True)
            ]
    return rebuild_result(captured.result, outputs)


def block_of(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    blocks: Blocks,
    right: frozenset[str] | None = None,
) -> CompiledBlock:
    """The block of ``fun(*args, **kwargs)``, of those captured so far or a new one.

    It is written in the `right_forms` given.

    Raises:
        Unsupported: If it cannot be a program.
    """
    key = (fun, right, _signature((fun, args, kwargs)))
    if key not in blocks:
        try:
            blocks[key] = _compiled(fun, args, kwargs, right)
        except Unsupported as error:
            blocks[key] = Unsupported(error.primitive, error.why, error.near)
    block = blocks[key]
    if isinstance(block, Unsupported):
        # Anew: a traceback would keep modules alive.
        raise Unsupported(block.primitive, block.why, block.near)
    return block


def right_forms(device: str) -> frozenset[str] | None:
    """What was found right on a device; None: nothing is known of it.

    Entries are "form=choice" of :data:`mlx_ane.translate.FORMS`, and "ports=N" for
    programs of N inputs.
    """
    if device != "ane":
        return None
    from mlx_ane import _selftest  # here, as `python -m` runs it as a program

    return _selftest.right_forms()


def _compiled(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    right: frozenset[str] | None,
) -> CompiledBlock:
    """A block in forms that are right, of as many inputs as are right."""
    forms = choose(right)
    block = _padded(fun, args, kwargs, forms)
    counts = [int(r[6:]) for r in right or () if r.startswith("ports=")]
    if not counts or block.inputs() <= max(counts):
        return block
    if "weights=rows" in (right or ()):
        block = _padded(fun, args, kwargs, forms | {"weights": "rows"})
    if (n := block.inputs()) > max(counts):
        why = f"{n} inputs of a program, {max(counts)} are right on this machine"
        raise Unsupported("Input", why)
    return block


def _padded(
    fun: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    forms: dict[str, str],
) -> CompiledBlock:
    """A block of as many rows as its bucket, or as the arguments have.

    Blocks of one bucket share their programs: they are equal.
    """
    size = rows_of((args, kwargs))
    rows = next((n for n in BUCKETS if n >= size), size)
    if rows != size:
        try:
            return CompiledBlock(fun, args, kwargs, rows, forms)
        except Unsupported:
            pass
    return CompiledBlock(fun, args, kwargs, None, forms)


class CompiledBlock(Block):
    """A block, what it needs to run on a device, and that for its gradients."""

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        rows: int | None,
        forms: dict[str, str],
    ) -> None:
        def spread(args: Any, kwargs: Any) -> Any:
            return fun(*args, **kwargs)

        super().__init__(spread, args, kwargs, rows=rows, **forms)
        self.dtypes = output_dtypes(spread, args, kwargs)

    def inputs(self) -> int:
        """The most inputs that one of its programs has."""
        programs = (self.forward, self.backward(self.differentiable))
        return max(len(p.program.ports) for p in programs)

    @cached_property
    def quantised(self) -> dict[int, Node]:
        """The inputs of the body that are dequantised, and how."""
        made = self.captured.prologue.producers()
        nodes = {i: made.get(v) for i, v in enumerate(self.captured.body.inputs)}
        return {i: n for i, n in nodes.items() if n and n.name == "Dequantised"}

    def frozen(self, args: Any, kwargs: Any) -> list[bool]:
        """For each input of the body, whether it is a module's frozen parameter.

        A dequantised one is if all arrays that it is made of are.
        """
        roots = _modules([args, kwargs, _closed_over(self.captured.fun)])
        frozen = {
            id(value)
            for root in roots
            for module in root.modules()
            for key, value in module.items()
            if key in module._no_grad
        }
        leaves = dict(
            zip(
                self.captured.prologue.inputs,
                self.captured.flatten(args, kwargs),
                strict=False,  # constants and the random key come after
            )
        )
        sources = [
            self.quantised[i].inputs if i in self.quantised else (v,)
            for i, v in enumerate(self.captured.body.inputs)
        ]
        return [
            all(v in leaves and id(leaves[v]) in frozen for v in values)
            for values in sources
        ]

    def node(
        self,
        program: BlockProgram,
        given: Arrays,
        outputs: list[tuple[tuple[int, ...], mx.Dtype, int | None]],
        frozen: list[bool],
        quantised: dict[int, Node],
        transforms: _Function,
        device: str,
        name: str,
        stream: Any = None,
    ) -> Arrays:
        """Results of a program as a node of MLX's graph."""
        results: Arrays = _ext.block.call(
            program.handle,
            given,
            [(s, d, -1 if r is None else r) for s, d, r in outputs],
            frozen,
            [
                (i, *n.arguments[:2], MODES[n.arguments[2]])
                for i, n in quantised.items()
            ],
            transforms,
            device=device,
            name=name,
            stream=stream,
        )
        return results


Blocks = dict[Any, "CompiledBlock | Unsupported"]


def _closed_over(fun: Any) -> list[Any]:
    """What a function closes over, functions in it included."""
    values = []
    for cell in getattr(fun, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    return values + [v for f in values if f is not fun for v in _closed_over(f)]


def _signature(tree: Any) -> Any:
    """What a capture depends on: shapes, dtypes, classes and all other values."""
    parts: list[Any] = []
    _add_signature(tree, parts, {})
    return tuple(parts)


def _add_signature(value: Any, parts: list[Any], seen: dict[int, int]) -> None:
    if id(value) in seen and isinstance(value, nn.Module):
        parts.append(seen[id(value)])
    elif isinstance(value, mx.array):
        parts.append((value.shape, str(value.dtype)))
    elif isinstance(value, nn.Module):
        seen[id(value)] = len(seen)
        parts.append(type(value))
        _add_signature(dict(value), parts, seen)
        # Names and devices of ours differ between equal layers.
        ours = {"_no_grad", *getattr(type(value), "_settings", ())}
        _add_signature(
            {k: v for k, v in vars(value).items() if k not in ours}, parts, seen
        )
    elif isinstance(value, dict):
        parts.append(len(value))
        for key, item in value.items():
            parts.append(key)
            _add_signature(item, parts, seen)
    elif isinstance(value, (list, tuple)):
        parts.append((type(value), len(value)))
        for item in value:
            _add_signature(item, parts, seen)
    elif isinstance(value, (int, float, str, bool, type(None))):
        parts.append((type(value), value))
    elif isinstance(value, np.ndarray):
        parts.append((value.shape, str(value.dtype), value.tobytes()))
    elif isinstance(value, types.FunctionType):
        parts.append(value.__code__)
        _add_signature(_closed_over(value), parts, seen)
    else:
        parts.append(value if _hashable(value) else id(value))


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


class _Function:
    """Transforms of a plain MLX function, for those that have no program."""

    def __init__(self, fun: Callable[..., Arrays]) -> None:
        self.fun = fun

    def vjp(self, primals: Arrays, cotangents: Arrays, argnums: Any, s: Any) -> Arrays:
        with mx.stream(s):
            partial = self._partial(primals, argnums)
            return mx.vjp(partial, [primals[i] for i in argnums], cotangents)[1]

    def jvp(self, primals: Arrays, tangents: Arrays, argnums: Any, s: Any) -> Arrays:
        with mx.stream(s):
            partial = self._partial(primals, argnums)
            return mx.jvp(partial, [primals[i] for i in argnums], tangents)[1]

    def vmap(self, inputs: Arrays, axes: Sequence[int], s: Any) -> Arrays:
        with mx.stream(s):
            in_axes = tuple(None if a < 0 else a for a in axes)
            return list(mx.vmap(self.fun, in_axes=in_axes)(*inputs))

    def _partial(self, primals: Arrays, argnums: Sequence[int]) -> Any:
        def partial(*changed: mx.array) -> Arrays:
            full = list(primals)
            for index, array in zip(argnums, changed, strict=True):
                full[index] = array
            return self.fun(*full)

        return partial


class _Forward(_Function):
    """Of a block's forward: the gradient is a program."""

    def __init__(
        self,
        block: CompiledBlock,
        frozen: list[bool],
        quantised: dict[int, Node],
        device: str,
        name: str,
    ) -> None:
        def plain(*arrays: mx.array) -> Arrays:
            outputs = block.captured.body.run(*_dense(arrays, quantised))
            return [y.astype(d) for y, d in zip(outputs, block.dtypes, strict=True)]

        super().__init__(plain)
        self.block, self.frozen, self.device, self.name = block, frozen, device, name
        self.quantised = quantised

    def vjp(self, primals: Arrays, cotangents: Arrays, argnums: Any, s: Any) -> Arrays:
        wanted = tuple(argnums)
        if any(i >= len(self.frozen) or i in self.quantised for i in wanted):
            return super().vjp(primals, cotangents, argnums, s)
        back = self.block.backward(wanted)
        given = [*cotangents, *primals]
        n = len(cotangents)
        quantised = {n + i: node for i, node in self.quantised.items()}
        asked = [primals[i].dtype for i in wanted]

        # A residual is added by the node if the result is that gradient's alone.
        added = {
            output.result: output.residual
            for output in back.outputs
            if output.result is not None and not output.gemms
        }
        residuals = [added.get(i) for i in range(len(back.program.results))]

        def plain(*arrays: mx.array) -> Arrays:
            wide = [a.astype(mx.float32) for a in _dense(arrays, quantised)]
            return [
                result if r is None else result + wide[r]
                for result, r in zip(back.tape.run(*wide), residuals, strict=True)
            ]

        results = self.block.node(
            back,
            given,
            [
                (result.shape, mx.float32, residual)
                for result, residual in zip(
                    back.program.results, residuals, strict=True
                )
            ],
            [False] * n + self.frozen,
            quantised,
            _Function(plain),
            self.device,
            self.name,
            s,
        )
        found = []
        with mx.stream(mx.cpu):
            given = _dense(given, quantised)
        for output, dtype in zip(back.outputs, asked, strict=True):
            with mx.stream(mx.cpu if output.gemms else s):
                found.append(self._gradient(output, results, given).astype(dtype))
        return found

    def _gradient(self, output: Any, results: Arrays, given: Arrays) -> mx.array:
        total = None if output.result is None else results[output.result]
        for gemm in output.gemms:
            product = _ext.block.weight_gradient(
                _matrix(gemm.left, results, given),
                _matrix(gemm.right, results, given),
                self.name,
                mx.float32,
            )
            total = product if total is None else total + product
        if output.residual is not None and (output.result is None or output.gemms):
            residual = given[output.residual]
            total = residual if total is None else total + residual
        return mx.zeros(output.shape) if total is None else total.reshape(output.shape)


def _dense(given: Sequence[mx.array], quantised: dict[int, Node]) -> Arrays:
    """Inputs of a program from those of its node, by MLX."""
    dense = list(given)
    for i, node in reversed(quantised.items()):
        n = len(dense) - len(node.inputs) + 1
        dense[i] = dequantised([dense[i], *dense[n:]], node.arguments)
        del dense[n:]
    return dense


def _matrix(operand: Operand, results: Arrays, given: Arrays) -> mx.array:
    array = (
        results[operand.result]
        if operand.result is not None
        else given[operand.source or 0]
    )
    matrix = array.reshape(operand.shape)
    return matrix.T if operand.transposed else matrix


def rebuild_result(result: Any, outputs: Arrays) -> Any:
    """The result with arrays in the place of their indices."""
    if isinstance(result, bool) or not isinstance(result, (int, list, tuple, dict)):
        return result
    if isinstance(result, int):
        return outputs[result]
    if isinstance(result, dict):
        return {k: rebuild_result(v, outputs) for k, v in result.items()}
    parts = [rebuild_result(v, outputs) for v in result]
    return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
