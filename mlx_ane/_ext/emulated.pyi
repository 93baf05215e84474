"""The emulated engine."""

from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray


class Program:
    """A MIL program compiled and loaded."""

    def __init__(self, text: bytes, weights: Mapping[str, bytes], *, chip: str, limits: str, allow: Set[str], memory_budget: int) -> None: ...

    def procedure(self, name: str) -> int: ...

    def name(self, procedure: int) -> str: ...

    def inputs(self, procedure: int) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of each input, names in ASCII order."""

    def outputs(self, procedure: int) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of each output, names in ASCII order."""

    def states(self, procedure: int) -> list[tuple[str, str, list[int]]]:
        """(name, dtype, shape) of each input that is a state."""

    def run(self, procedure: int, inputs: Sequence[Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]], exact: bool) -> list[bytes]:
        """
        Bytes of dense arrays in the order of inputs(); gives those of outputs(), then of states().
        """

def options() -> dict[str, Any]:
    """Options of the emulated device."""

def configure(*, chip: str, exact: bool, limits: str, allow: Set[str], refuse: Set[str], memory_budget: int) -> None: ...

def reset() -> None: ...

def usage() -> dict[str, Any]: ...

def rules() -> list[dict[str, Any]]: ...

def operations() -> dict[str, str]:
    """Operations and their pages in the MIL specification."""

def set_faults(specification: str) -> None: ...

def faults() -> str: ...

def fault_counts() -> dict[str, int]: ...

def release_hangs() -> None: ...

def set_evaluate_bound(milliseconds: int) -> None:
    """Bound of one evaluation while a fault that blocks is injected."""
