"""The emulated Neural Engine: run MIL programs on the CPU under published limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_ane._ext import emulated as _emulated

__all__ = [
    "EngineError",
    "Program",
    "ProgramError",
    "clear_faults",
    "configure",
    "fault_counts",
    "faults",
    "operations",
    "options",
    "release_hangs",
    "reset",
    "rules",
    "run",
    "set_faults",
    "usage",
]

Array = npt.NDArray[Any]

# MIL's names of the types that a function can take and give.
_DTYPES = {
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "bool": np.bool_,
}


class EngineError(RuntimeError):
    """The engine refused a call.

    Attributes:
        stage (str): ``parse``, ``compile``, ``load`` or ``evaluate``.
        rule (str): name of the limit (see :func:`rules`) or of the fault.
        code (int): code of the engine's NSError, 0 where none is reported.
        domain (str): domain of the NSError.
    """

    def __init__(
        self, message: str, stage: str, rule: str, code: int, domain: str
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.rule = rule
        self.code = code
        self.domain = domain


class ProgramError(EngineError, ValueError):
    """The engine refused a program as such, while parsing or compiling it."""


class Program:
    """A MIL program compiled once, to be run many times.

    Args:
        text (str or bytes): MIL text, of either dialect.
        weights (dict): ``{"@model_path/...": bytes}`` of its weight files.
        chip (str): "M1" to "M6", with or without Pro, Max or Ultra, or an architecture
            ("h13" to "h18" with any suffix).
        limits (str): ``"program"`` enforces the rules by which every report has a
            program refused, ``"strict"`` all in their stricter reading, ``"off"``
            none.
        allow (iterable of str): rules that are not enforced (see :func:`rules`);
            "disputed" stands for all disputed ones.
        memory_budget (int): bytes; a program that needs more is refused.

    Raises:
        ProgramError: if the program is malformed or the engine would refuse it.
    """

    def __init__(
        self,
        text: str | bytes,
        weights: Mapping[str, bytes] | None = None,
        *,
        chip: str = "h16g",
        limits: str = "program",
        allow: Iterable[str] = (),
        memory_budget: int = 4 << 30,
    ) -> None:
        # surrogateescape: invalid UTF-8 is the parser's to report.
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        self._program = _emulated.Program(
            text.encode("utf-8", "surrogateescape"),
            {path: bytes(data) for path, data in (weights or {}).items()},
            chip=chip,
            limits=limits,
            allow=set(allow),
            memory_budget=memory_budget,
        )

    def inputs(self, function: str | None = None) -> dict[str, tuple[str, list[int]]]:
        """MIL dtype and shape of each input, in the engine's binding order.

        Args:
            function (str, optional): one by name; the first if None.
        """
        ports = self._program.inputs(self._procedure(function))
        return {name: (dtype, shape) for name, dtype, shape in ports}

    def outputs(self, function: str | None = None) -> dict[str, tuple[str, list[int]]]:
        """MIL dtype and shape of each output, in the engine's binding order.

        Args:
            function (str, optional): one by name; the first if None.
        """
        ports = self._program.outputs(self._procedure(function))
        return {name: (dtype, shape) for name, dtype, shape in ports}

    def __call__(
        self,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        *,
        numerics: str = "fast",
        function: str | None = None,
    ) -> dict[str, Array]:
        """Run a function; see :func:`run`."""
        exact = _is_exact(numerics)
        procedure = self._procedure(function)
        given = dict(inputs or {})
        dense = [
            _dense(name, dtype, shape, given)
            for name, dtype, shape in self._program.inputs(procedure)
        ]
        if given:
            raise ValueError(
                f"[mlx_ane.emulated] got inputs {sorted(given)}, which the function "
                f"does not take; it takes {list(self.inputs(function))}."
            )
        results = self._program.run(procedure, dense, exact)
        ports = self._program.outputs(procedure) + self._program.states(procedure)
        return {
            name: np.frombuffer(data, _DTYPES[dtype]).reshape(shape).copy()
            for (name, dtype, shape), data in zip(ports, results, strict=True)
        }

    def _procedure(self, function: str | None) -> int:
        procedure: int = 0 if function is None else self._program.procedure(function)
        return procedure


def _dense(
    name: str, dtype: str, shape: list[int], given: dict[str, npt.ArrayLike]
) -> npt.NDArray[np.uint8]:
    """Take input `name` out of `given` as the bytes of a dense array."""
    if name not in given:
        raise ValueError(
            f"[mlx_ane.emulated] input {name} of type {dtype}{shape} is missing."
        )
    array = np.asarray(given.pop(name))
    if list(array.shape) != shape:
        raise ValueError(
            f"[mlx_ane.emulated] input {name} has shape {list(array.shape)}, "
            f"need {shape}."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        dense: Array = np.ascontiguousarray(array, dtype=_DTYPES[dtype])
    return dense.reshape(-1).view(np.uint8)


def run(
    text: str | bytes,
    weights: Mapping[str, bytes] | None = None,
    inputs: Mapping[str, npt.ArrayLike] | None = None,
    *,
    chip: str = "h16g",
    numerics: str = "fast",
    limits: str = "program",
    allow: Iterable[str] = (),
    function: str | None = None,
) -> dict[str, Array]:
    """Run a function of a MIL program once.

    Args:
        text (str or bytes): MIL text, of either dialect.
        weights (dict): ``{"@model_path/...": bytes}`` of its weight files.
        inputs (dict): arrays by MIL name, of the declared shapes; converted to the
            declared dtypes.
        chip (str): chip whose limits and numerics hold, as :class:`Program`'s.
        numerics (str): ``"fast"`` accumulates in fp32, ``"exact"`` as reported of the
            chip. Both round to fp16 after every operation.
        limits (str): ``"program"``, ``"strict"`` or ``"off"``; see :class:`Program`.
        allow (iterable of str): rules that are not enforced.
        function (str, optional): name of the function; the first one by default.

    Returns:
        dict: outputs by MIL name, of the declared shapes and dtypes; the new value of
            each state by the name of its input.

    Raises:
        ProgramError: if the program is malformed or the engine would refuse it.
        EngineError: if loading or evaluating it fails.
        ValueError: if an input is missing, unknown or of another shape.
    """
    program = Program(text, weights, chip=chip, limits=limits, allow=allow)
    return program(inputs, numerics=numerics, function=function)


def options() -> dict[str, Any]:
    """Options of the emulated device, as :func:`configure` takes them."""
    return dict(_emulated.options())


def configure(
    *,
    chip: str | None = None,
    numerics: str | None = None,
    limits: str | None = None,
    allow: Iterable[str] | None = None,
    refuse: Iterable[str] | None = None,
    memory_budget: int | None = None,
) -> None:
    """Set options of the emulated device; those not given stay as they are.

    ``numerics`` holds from the next call on; the others hold for programs compiled
    later (``mlx_ane.clear_cache()`` drops the compiled ones).

    Args:
        chip (str, optional): as :class:`Program`'s; kept as its architecture.
        numerics (str, optional): ``"fast"`` or ``"exact"``, as :func:`run`'s.
        limits (str, optional): ``"strict"``, ``"program"`` or ``"off"``.
        allow (iterable of str, optional): rules that are not enforced.
        refuse (iterable of str, optional): operations of MIL, such as "sigmoid", with
            which no program compiles.
        memory_budget (int, optional): bytes; a program that needs more is refused.

    Raises:
        ValueError: for an unknown chip, level, rule or operation.
    """
    given = {
        "chip": chip,
        "numerics": numerics,
        "limits": limits,
        "allow": None if allow is None else list(allow),
        "refuse": None if refuse is None else list(refuse),
        "memory_budget": memory_budget,
    }
    new = options() | {key: value for key, value in given.items() if value is not None}
    _emulated.configure(
        chip=new["chip"],
        exact=_is_exact(new["numerics"]),
        limits=new["limits"],
        allow=set(new["allow"]),
        refuse=set(new["refuse"]),
        memory_budget=new["memory_budget"],
    )


def _is_exact(numerics: str) -> bool:
    if numerics not in ("fast", "exact"):
        raise ValueError(
            f'[mlx_ane.emulated] got numerics "{numerics}", need "fast" or "exact".'
        )
    return numerics == "exact"


def reset() -> None:
    """Act as a fresh process: environment's options, nothing counted, no faults."""
    _emulated.reset()


def usage() -> dict[str, Any]:
    """Compilations so far, programs resident now, their weight bytes, poison."""
    return dict(_emulated.usage())


def rules() -> list[dict[str, Any]]:
    """Every rule that is enforced: id, stage, level, disputed, limit, source, against.

    ``level`` is the weakest of ``limits`` that enforces it.
    """
    return list(_emulated.rules())


def operations() -> dict[str, str]:
    """Operations that run, each with its page of the MIL specification."""
    return dict(_emulated.operations())


def set_faults(specification: str) -> None:
    """Replace the injected faults; ``docs/faults.md`` has the syntax.

    Args:
        specification (str): faults with their keys, separated by semicolons.

    Example:
        >>> set_faults("evaluate_false:rate=0.1,seed=7;slow:ms=5")
        >>> clear_faults()

    Raises:
        ValueError: for an unknown fault or key.
    """
    _emulated.set_faults(specification)


def clear_faults() -> None:
    """Remove every fault and let calls that hang continue."""
    _emulated.set_faults("")
    _emulated.release_hangs()


def fault_counts() -> dict[str, int]:
    """How often each fault struck since it was set."""
    return dict(_emulated.fault_counts())


def release_hangs() -> None:
    """Let calls that hang continue."""
    _emulated.release_hangs()


@contextmanager
def faults(*specifications: str) -> Iterator[None]:
    """Inject faults within a block, and restore those before it afterwards.

    Args:
        *specifications (str): as :func:`set_faults`'s, one or more.

    Example:
        >>> with faults("nan:count=1", "compile_error:call=2"):
        ...     pass

    Raises:
        ValueError: for an unknown fault or key.
    """
    before = _emulated.faults()
    _emulated.set_faults(";".join(specifications))
    try:
        yield
    finally:
        _emulated.set_faults(before)
        _emulated.release_hangs()
