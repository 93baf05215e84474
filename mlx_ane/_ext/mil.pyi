"""MIL programs and weight files; see mlx_ane.mil."""

from collections.abc import Sequence, Set
from typing import Any


class Value:
    """A named, typed value."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """Name of the element type, for example ``fp16``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes; -1 where the text has ``?``."""

    @property
    def state(self) -> bool: ...

class Constant:
    """A literal or a BLOBFILE."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def elements(self) -> object: ...

    @property
    def blob(self) -> tuple[str, int] | None:
        """Path and offset of a BLOBFILE, or None."""

class Operation:
    @property
    def op(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> dict[str, Any]: ...

    @property
    def attributes(self) -> dict[str, Any]: ...

    @property
    def outputs(self) -> list[Value]: ...

    @property
    def line(self) -> int: ...

class Function:
    @property
    def name(self) -> str: ...

    @property
    def opset(self) -> str: ...

    @property
    def inputs(self) -> list[Value]: ...

    @property
    def operations(self) -> list[Operation]: ...

    @property
    def outputs(self) -> list[str]: ...

class Program:
    @property
    def version(self) -> str: ...

    @property
    def build_info(self) -> list[tuple[str, str]]: ...

    @property
    def functions(self) -> list[Function]: ...

    @property
    def dialect(self) -> str: ...

    def text(self, dialect: str) -> str: ...

    def same_meaning(self, other: Program) -> bool: ...

def parse(text: bytes) -> Program:
    """A Program; ValueError with line, column and a caret."""

class Rule:
    @property
    def id(self) -> str: ...

    @property
    def severity(self) -> str: ...

    @property
    def stage(self) -> str: ...

    @property
    def disputed(self) -> bool: ...

    @property
    def why(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def against(self) -> str: ...

def rules() -> list[Rule]: ...

def check(program: Program, chip: str, macos: str, allow: Set[str]) -> list[tuple[Rule, str, str, int]]:
    """(rule, where, what, line) of each finding."""

class Chunk:
    @property
    def code(self) -> int: ...

    @property
    def dtype(self) -> str | None: ...

    @property
    def offset(self) -> int: ...

    @property
    def data_offset(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def elements(self) -> int: ...

def chunks(file: bytes) -> list[Chunk]: ...

def read_chunk(file: bytes, offset: int, dtype: str, shape: Sequence[int]) -> bytes: ...

class WeightWriter:
    def __init__(self) -> None: ...

    def add(self, dtype: str, data: bytes) -> int: ...

    def bytes(self) -> bytes: ...

def model_spec(program: Program, version: int, description: str, author: str, license: str, model_version: str, user_defined: Sequence[tuple[str, str]], shapes: Sequence[tuple[str, Sequence[Sequence[int]]]], weights: WeightWriter | None) -> bytes:
    """Bytes of a Core ML Model."""

def spec_version(program: Program) -> int: ...

def read_spec(model: bytes) -> Program: ...
