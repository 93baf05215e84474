"""Programs for the Neural Engine: parse, write, check, as text or for Core ML.

MIL (Model Intermediate Language) is the text that the engine's compiler reads.

>>> from mlx_ane import mil
>>> program = mil.parse('''
... program(1.3) {
...   func main<ios18>(tensor<fp16, [1, 64, 1, 32]> x) {
...     tensor<fp16, [1, 64, 1, 32]> y = relu(x = x)[name = string("y")];
...   } -> (y);
... }''')
>>> program.functions[0].operations[0].op
'relu'
>>> mil.check(program, chip="h16g")
[]
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_ane import _ext
from mlx_ane.mil import spec, weights
from mlx_ane.mil.program import Blob, Constant, Function, Operation, Program, Value

__all__ = [
    "Blob",
    "Constant",
    "Finding",
    "Function",
    "Operation",
    "Program",
    "Rule",
    "Value",
    "check",
    "parse",
    "rules",
    "spec",
    "weights",
]


@dataclass(frozen=True)
class Rule:
    """A reported limit that can be seen in the text of a program."""

    #: For example ``concat``; `check` leaves it out with ``allow=["concat"]``.
    id: str
    #: ``error`` (reported to be refused or wrong), ``warning`` or ``note``.
    severity: str
    #: When the engine notices: ``parse``, ``compile``, ``load``, ``evaluate``, or
    #: ``never`` (wrong values without a word).
    stage: str
    #: A report contradicts it, for some route, chip or macOS or for all; the
    #: stricter one is the default.
    disputed: bool
    why: str
    #: Public names of the reports, as in docs/limits.md.
    source: str
    #: Who reports otherwise, and where; empty if nobody does.
    against: str


@dataclass(frozen=True)
class Finding:
    """What `check` found at one place of a program."""

    rule: str
    where: str
    what: str
    why: str
    source: str
    severity: str
    #: 1-based line of the text, 0 for a finding of the whole program.
    line: int
    #: Who reports otherwise, and where; empty if nobody does.
    against: str

    def __str__(self) -> str:
        against = f" Against it: {self.against}." if self.against else ""
        return (
            f"{self.severity} {self.rule} ({self.where}): {self.what}; {self.why}. "
            f"Source: {self.source}.{against}"
        )


def parse(text: str | bytes) -> Program:
    """Parse MIL text of either dialect.

    Args:
        text (str or bytes): The program; bytes must be UTF-8.

    Returns:
        Program: Its functions, operations and constants.

    Raises:
        ValueError: The text is malformed. The message is one sentence with line and
            column, and a caret under the place.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return Program(_ext.mil.parse(bytes(data)))


def check(
    program: Program | str | bytes,
    chip: str = "h16g",
    macos: str = "26",
    *,
    allow: Iterable[str] = (),
) -> list[Finding]:
    """Compare a program with what is reported about an engine and its compiler.

    Nothing is executed. Where reports conflict, the stricter one holds; `allow`
    names the rules to leave out.

    Args:
        program (Program, str or bytes): A program or its text.
        chip (str): ``M1`` to ``M6``, with or without Pro, Max or Ultra, or an
            architecture (``h13`` to ``h18`` with any suffix).
        macos (str): Version of macOS.
        allow (Iterable[str]): Ids of `rules`; "disputed" stands for all disputed ones.

    Returns:
        list[Finding]: In the order of the text, at most 1000.

    Raises:
        ValueError: Malformed text; an unknown chip, version or rule.
    """
    if not isinstance(program, Program):
        program = parse(program)
    found = _ext.mil.check(program.handle, chip, macos, set(allow))
    return [
        Finding(
            rule.id,
            where,
            what,
            rule.why,
            rule.source,
            rule.severity,
            line,
            rule.against,
        )
        for rule, where, what, line in found
    ]


def rules() -> list[Rule]:
    """Every rule that `check` knows, sorted by id."""
    return [
        Rule(r.id, r.severity, r.stage, r.disputed, r.why, r.source, r.against)
        for r in _ext.mil.rules()
    ]
