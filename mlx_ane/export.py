"""`mlx_ane.export`: an MLX function or model as a Core ML package.

The function is captured as for the engine, but its weights become constants of the
package, compressed if asked for, and what the package holds is run on the emulated
engine and compared with MLX before the call returns.
"""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_ane import emulated, mil
from mlx_ane.capture import Captured, capture, lowered, rebuild
from mlx_ane.constants import WAYS, Quantised, Store
from mlx_ane.coreml import INNER, Port, Settings, write_function
from mlx_ane.tape import Tape, Unsupported

__all__ = ["DEPLOYMENTS", "ExportReport", "export"]

Array = npt.NDArray[Any]

#: Version of the specification for the oldest system that a package is to run on.
DEPLOYMENTS = {
    "macOS13": 7,
    "macOS14": 8,
    "macOS15": 9,
    "macOS26": 10,
    "iOS16": 7,
    "iOS17": 8,
    "iOS18": 9,
    "iOS26": 10,
}
#: The largest relative error of a program against MLX with the same weights.
LIMIT = 2e-2


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote and how far it is from MLX."""

    path: str
    #: For example "macOS14", and the version of the specification that it stands for.
    deployment: str
    version: int
    #: Name, shape and MIL type of inputs and outputs.
    inputs: list[Port]
    outputs: list[Port]
    #: Operations of the program by name, constants left out.
    operations: dict[str, int]
    #: Bytes of the weight file.
    weight_bytes: int
    #: |package - MLX| / |MLX|, the package run by the emulated engine; None without
    #: the check.
    error: float | None
    #: The same against MLX with the weights as they are stored.
    program_error: float | None
    #: Weights that MLX quantised in a way that Core ML cannot hold: they are fp16.
    widened: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        ports = [
            f"{kind} {p.name}: {p.dtype} {list(p.shape)}"
            for kind, many in (("input", self.inputs), ("output", self.outputs))
            for p in many
        ]
        lines = [
            f"{self.path}: {sum(self.operations.values())} operations, "
            f"{self.weight_bytes / 1e6:.3g} MB of weights, for {self.deployment}",
            *ports,
        ]
        if self.widened:
            lines.append(f"in fp16: {', '.join(self.widened)}")
        if self.error is None:
            lines.append("not compared with MLX")
        else:
            lines.append(
                f"relative error against MLX: {self.error:.1e}; against MLX with the "
                f"weights as stored: {self.program_error:.1e}"
            )
        return "\n".join(lines)


def export(
    fun: Callable[..., Any],
    path: str | os.PathLike[str],
    *example_inputs: mx.array,
    names: Sequence[str] | None = None,
    weights: str = "float16",
    deployment: str = "macOS14",
    lengths: Sequence[int] | None = None,
    check: bool = True,
    description: str = "",
    author: str = "",
    license: str = "",
    model_version: str = "",
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Write a function or module as a Core ML package.

    Its modules are copied, never changed; adapters of LoRA are fused in the copy.
    Weights that MLX quantised stay quantised.

    Args:
        fun (callable): A module, or a function of modules, in eval mode.
        path (str): The package to write, ``*.mlpackage``; an older one is replaced.
        *example_inputs (array): Its arguments. Their shapes become those of the
            package. Floating-point inputs are fp16 or fp32 in the package as here,
            bfloat16 is fp32 there, integers and booleans are int32.
        names (Sequence[str], optional): Names of the inputs, then of the outputs.
            Those of the function's parameters and ``output`` if None.
        weights (str): ``"float16"``; ``"int8"`` with a scale for each row; ``"int4"``
            with a scale for each 32 elements, or before macOS 15 with a table of 16
            values for each matrix. Vectors and small matrices stay fp16.
        deployment (str): The oldest system: ``"macOS13"`` (``"iOS16"``), ``"macOS14"``
            (``"iOS17"``), ``"macOS15"`` (``"iOS18"``) or ``"macOS26"`` (``"iOS26"``).
        lengths (Sequence[int], optional): Sizes of the inputs' second axis: the package
            has a function ``length_N`` for each, over the same weights, and ``main``
            for the examples' own. From macOS 15 on.
        check (bool): Whether to read the package back, run it on the emulated engine
            and compare it with MLX.
        description (str): What the model does.
        author (str): Who made it.
        license (str): Under which terms.
        model_version (str): Its own version.
        metadata (Mapping[str, str], optional): Further texts by name.

    Returns:
        ExportReport: What was written, and its error.

    Raises:
        NotImplementedError: Something has no form in Core ML, or not for this
            deployment; the sentence names the primitive and the module.
        RuntimeError: The package does not compute what MLX computes.
        ValueError: A wrong argument.

    Example:
        >>> report = ane.export(model, "encoder.mlpackage", tokens, mask)
        >>> print(report)
    """
    version = _version(weights, deployment)
    examples = [_example(i, x) for i, x in enumerate(example_inputs)]
    store = Store()
    settings = Settings(weights, version, store)
    copied, quantised = _prepare(fun, version, deployment)
    functions = [_Function.of("main", copied, examples, fun, names)]
    for length in _lengths(lengths, examples, deployment):
        resized = [_resized(x, examples, length) for x in examples]
        functions.append(_Function.of(f"length_{length}", copied, resized, fun, names))
    text = "".join(f.write(settings, quantised) for f in functions)
    program = mil.parse(f"program(1.3)\n{{\n{text}}}\n")
    model = mil.spec.write(
        program,
        version=version,
        description=description,
        author=author,
        license=license,
        model_version=model_version,
        metadata=metadata,
    )
    file = store.writer.getvalue() if store.used else b""
    mil.spec.save(path, model, file)
    main = functions[0]
    compressed = weights != "float16" or bool(quantised)
    errors = [f.compare(path, fun, compressed) for f in functions] if check else []
    operations: dict[str, int] = {}
    for op in program.functions[0].operations:
        if op.op != "const" and not op.op.startswith("constexpr_"):
            operations[op.op] = operations.get(op.op, 0) + 1
    return ExportReport(
        path=os.fspath(path),
        deployment=deployment,
        version=version,
        inputs=main.inputs,
        outputs=main.outputs,
        operations=operations,
        weight_bytes=len(file),
        error=max((e[0] for e in errors), default=None),
        program_error=max((e[1] for e in errors), default=None),
        widened=main.widened,
    )


# Arguments.


def _version(weights: str, deployment: str) -> int:
    if weights not in WAYS:
        raise ValueError(
            f"[mlx_ane.export] weights is {weights!r}, need one of {list(WAYS)}."
        )
    if deployment not in DEPLOYMENTS:
        raise ValueError(
            f"[mlx_ane.export] deployment is {deployment!r}, need one of "
            f"{list(DEPLOYMENTS)}."
        )
    return DEPLOYMENTS[deployment]


def _example(index: int, value: Any) -> mx.array:
    if not isinstance(value, mx.array) or value.ndim == 0:
        kind = "a scalar" if isinstance(value, mx.array) else type(value).__name__
        raise ValueError(
            f"[mlx_ane.export] example input {index} is {kind}, need an array of one "
            "axis or more; close over other arguments in a function."
        )
    if mx.issubdtype(value.dtype, mx.complexfloating):
        raise ValueError(
            f"[mlx_ane.export] example input {index} is {value.dtype}, need a real "
            "type."
        )
    return value


def _lengths(
    lengths: Sequence[int] | None, examples: Sequence[mx.array], deployment: str
) -> list[int]:
    """The lengths beside the examples' own."""
    if not lengths:
        return []
    if DEPLOYMENTS[deployment] < 9:
        raise NotImplementedError(
            f"[mlx_ane.export] several lengths are functions of one package, which "
            f'{deployment} does not have; use deployment="macOS15", or export each.'
        )
    if not examples or examples[0].ndim < 2 or any(n < 1 for n in lengths):
        raise ValueError(
            f"[mlx_ane.export] lengths is {list(lengths)}, need positive sizes for the "
            "second axis of the first input."
        )
    return [n for n in dict.fromkeys(lengths) if n != examples[0].shape[1]]


def _resized(x: mx.array, examples: Sequence[mx.array], length: int) -> mx.array:
    """The example with another length, repeated or cut."""
    own = examples[0].shape[1]
    if x.ndim < 2 or x.shape[1] != own:
        return x
    return mx.take(x, mx.arange(length) % own, axis=1)


# The function: a copy with fused adapters and known quantised weights.


class _Bound:
    """A function whose modules are attributes instead of globals."""

    def __init__(self, function: types.FunctionType, modules: dict[str, Any]) -> None:
        self.function, self.modules = function, modules

    def __call__(self, *args: Any) -> Any:
        f = self.function
        space = {**f.__globals__, **self.modules}
        bound = types.FunctionType(
            f.__code__, space, f.__name__, f.__defaults__, f.__closure__
        )
        bound.__kwdefaults__ = f.__kwdefaults__
        return bound(*args)


def _prepare(
    fun: Callable[..., Any], version: int, deployment: str
) -> tuple[Callable[..., Any], dict[int, Quantised]]:
    """A copy of the function, and its quantised weights by the array in their place."""
    if isinstance(fun, types.FunctionType):
        used = {n: fun.__globals__.get(n) for n in fun.__code__.co_names}
        modules = {n: m for n, m in used.items() if isinstance(m, nn.Module)}
        fun = _Bound(fun, modules) if modules else fun
    copied = rebuild({"fun": fun}, lambda _, array, __: array)["fun"]
    quantised: dict[int, Quantised] = {}
    for root in list(_roots(copied)):
        root.update_modules(
            tree_unflatten(
                [
                    (path, module.fuse())
                    for path, module in root.named_modules()
                    if path and hasattr(module, "fuse")
                ]
            )
        )
        for path, module in root.named_modules():
            if isinstance(module, nn.BatchNorm) and module.training:
                raise ValueError(
                    f"[mlx_ane.export] the batch norm {path} is in training mode, need "
                    "eval mode; call model.eval() first."
                )
        root.update_modules(
            tree_unflatten(
                [
                    (path, _dequantised(path, module, quantised, version, deployment))
                    for path, module in root.named_modules()
                    if path and isinstance(module, _QUANTISED)
                ]
            )
        )
    return copied, quantised


_QUANTISED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def _roots(value: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules that a function reaches, outermost only."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    inner: Any = ()
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif isinstance(value, types.MethodType):
        inner = (value.__self__,)
    elif isinstance(value, partial):
        inner = (value.func, value.args, value.keywords)
    elif isinstance(value, types.FunctionType):
        inner = inspect.getclosurevars(value).nonlocals.values()
    elif isinstance(value, _Bound):
        inner = (value.function, value.modules)
    for item in inner:
        yield from _roots(item, seen)


def _dequantised(
    path: str,
    module: Any,
    quantised: dict[int, Quantised],
    version: int,
    deployment: str,
) -> nn.Module:
    """The plain layer of the same values; its weight stands for the quantised one."""
    where = f"[mlx_ane.export] {type(module).__name__} {path}"
    if getattr(module, "mode", "affine") != "affine":
        raise NotImplementedError(
            f"{where} is quantised as {module.mode}, for which Core ML has no "
            "constant; dequantise it, or quantise with mode='affine'."
        )
    if version < 9:
        raise NotImplementedError(
            f"{where} has a scale for each {module.group_size} weights, which "
            f'{deployment} cannot hold; use deployment="macOS15", or dequantise the '
            "model first."
        )
    parts = Quantised(
        module.weight, module.scales, module.biases, module.group_size, module.bits
    )
    weight = parts.dense()
    mx.eval(weight)
    quantised[id(weight)] = parts
    plain: Any
    if isinstance(module, nn.QuantizedEmbedding):
        plain = nn.Embedding(1, 1)
    else:
        plain = nn.Linear(1, 1, bias=False)
        if "bias" in module:
            plain.bias = module.bias
    plain.weight = weight
    return plain


# One function of the package.


@dataclass
class _Function:
    name: str
    captured: Captured
    #: Evaluated inputs of the captured body.
    arguments: list[mx.array]
    examples: list[mx.array]
    inputs: list[Port]
    outputs: list[Port]
    decoded: dict[int, Array] = field(default_factory=dict)
    widened: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        name: str,
        copied: Callable[..., Any],
        examples: list[mx.array],
        fun: Callable[..., Any],
        names: Sequence[str] | None,
    ) -> _Function:
        try:
            captured = capture(copied, *examples, all_data=True)
        except Unsupported as error:
            raise _named(error) from None
        if captured.draws:
            raise ValueError(
                "[mlx_ane.export] the function draws random numbers, as dropout does "
                "in training mode; call model.eval() first."
            )
        arguments = captured.arguments(*examples)
        mx.eval(arguments)
        given, made = _port_names(fun, captured, examples, names)
        unused = len(examples) - len(captured.data)
        if unused:
            raise ValueError(
                f"[mlx_ane.export] {unused} of the example inputs have no effect on "
                "the outputs; leave them out."
            )
        inputs = [
            Port(n, tuple(x.shape), _input_type(x.dtype))
            for n, x in zip(given, examples, strict=True)
        ]
        body = captured.body
        outputs = [
            Port(
                n,
                body.types[v].shape or (1,),
                _output_type(body.types[v].dtype, inputs),
            )
            for n, v in zip(made, body.outputs, strict=True)
        ]
        return cls(name, captured, arguments, examples, inputs, outputs)

    def write(self, settings: Settings, quantised: Mapping[int, Quantised]) -> str:
        """MIL text; notes the weights as they are stored."""
        captured = self.captured
        first = len(captured.data)
        weights: list[Array | Quantised] = [
            quantised.get(id(a)) or _numpy(a) for a in self.arguments[first:]
        ]
        try:
            tape = lowered(captured.body)
            tape.paths = dict(zip(tape.inputs, _paths(captured), strict=True))
            made = write_function(
                tape,
                self.name,
                self.inputs,
                self.outputs,
                dict(zip(tape.inputs[first:], weights, strict=True)),
                settings,
            )
        except Unsupported as error:
            raise _named(error) from None
        places = {v: i for i, v in enumerate(tape.inputs)}
        self.decoded = {places[v]: a for v, a in made.decoded.items()}
        self.widened = made.widened
        return made.text

    def compare(
        self, path: Any, fun: Callable[..., Any], compressed: bool
    ) -> tuple[float, float]:
        """Relative errors of what the package holds: against MLX, and against MLX with
        the weights as they are stored, the same if they are not compressed."""
        program, files = mil.spec.load(path)
        engine = emulated.Program(
            program.text(), files, limits="off", memory_budget=1 << 40
        )
        given = {
            p.name: _numpy(x) for p, x in zip(self.inputs, self.examples, strict=True)
        }
        got = engine(given, function=self.name)

        def worst(expected: Sequence[mx.array]) -> float:
            pairs = zip(self.outputs, expected, strict=True)
            return max(_error(got[port.name], x) for port, x in pairs)

        error = own = worst([a for _, a in tree_flatten(fun(*self.examples))])
        if compressed:
            with mx.stream(mx.cpu):
                own = worst(self.captured.body.run(*self._stored()))
        if not own <= LIMIT:
            raise RuntimeError(
                f"[mlx_ane.export] the package's function {self.name} has a relative "
                f"error of {own:.1e} against MLX, need {LIMIT:.0e} or less; fp16 may "
                "not hold its values."
            )
        return error, own

    def _stored(self) -> list[mx.array]:
        """Inputs of the body in fp32, weights as they are stored."""
        arrays = [
            mx.array(self.decoded[i]) if i in self.decoded else a
            for i, a in enumerate(self.arguments)
        ]
        return [
            a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a
            for a in arrays
        ]


def _named(error: Unsupported) -> NotImplementedError:
    """The primitive, and the module that it came from."""
    near = re.sub(r"^fun\.?(modules\.)?", "", error.near).rpartition(".")[0]
    place = f" in {near}" if near else ""
    unknown = error.why in ("it has no translation", "it cannot be run again")
    why = "it has no form in Core ML" if unknown else error.why
    return NotImplementedError(f"[mlx_ane.export] {error.primitive}{place}: {why}.")


def _paths(captured: Captured) -> list[str]:
    """Where each input of the body came from: the parameter itself, or behind it."""
    prologue, body = captured.prologue, captured.body
    found = []
    for v in body.inputs:
        path = prologue.paths.get(v) or _near(prologue, v)
        found.append(re.sub(r"^fun\.?(modules\.)?", "", path))
    return found


def _near(tape: Tape, value: str) -> str:
    node = tape.producers().get(value)
    return tape.near(node) if node is not None else ""


def _port_names(
    fun: Callable[..., Any],
    captured: Captured,
    examples: Sequence[mx.array],
    names: Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    count, made = len(examples), len(captured.body.outputs)
    if names is not None:
        found = list(names)
        if len(found) != count + made:
            raise ValueError(
                f"[mlx_ane.export] names has {len(found)} names, need {count} of "
                f"inputs and {made} of outputs."
            )
    else:
        found = _parameters(fun, count) + _results(captured.result, made)
    for name in found:
        fine = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and not INNER.fullmatch(
            name
        )
        if not fine or found.count(name) > 1:
            raise ValueError(
                f"[mlx_ane.export] the name {name!r} is taken twice, or is no "
                "identifier of letters, digits and underscores other than v and a "
                "number; give others in names."
            )
    return found[:count], found[count:]


def _parameters(fun: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][:count]
    if len(plain) == count and len(set(plain)) == count:
        return plain
    return [f"input_{i}" for i in range(count)]


def _results(result: Any, made: int) -> list[str]:
    flat = [path for path, _ in tree_flatten(result)]
    if made == 1 or len(flat) != made:
        only = re.sub(r"\W+", "_", flat[0]) if flat and flat[0] else "output"
        return [only] if made == 1 else [f"output_{i}" for i in range(made)]
    named = [re.sub(r"\W+", "_", path) for path in flat]
    return [f"output_{n}" if n[:1].isdigit() else n for n in named]


def _input_type(dtype: mx.Dtype) -> str:
    if dtype == mx.float16:
        return "fp16"
    return "fp32" if mx.issubdtype(dtype, mx.floating) else "int32"


def _output_type(dtype: mx.Dtype, inputs: Sequence[Port]) -> str:
    if not mx.issubdtype(dtype, mx.floating):
        return "int32"
    return "fp16" if any(p.dtype == "fp16" for p in inputs) else "fp32"


def _numpy(x: mx.array) -> Array:
    wide = x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x
    return np.array(wide)


def _error(got: Array, expected: mx.array) -> float:
    """|got - expected| / |expected|."""
    exact = _numpy(expected).astype(np.float64).ravel()
    scale = float(np.linalg.norm(exact)) or 1.0
    return float(np.linalg.norm(got.astype(np.float64).ravel() - exact) / scale)
