"""Runs cases over processes: prepares, checks, interleaves, takes ratios."""

from __future__ import annotations

import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_ane.bench.cases import Case, Variant

#: Variables that make a BLAS pick a slower kernel than the CPU runs.
SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_DEBUG_CPU_TYPE")
THREADS = (
    "MLX_ANE_BLAS_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@dataclass
class Row:
    """What was found for one variant of one case."""

    part: str
    case: str
    variant: str
    error: float | None
    correct: bool
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    rate: float = 0.0
    unit: str = ""
    target: str = ""
    spans: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def ratio(self) -> float | None:
        """Median ratio; None where there is nothing right to compare."""
        return statistics.median(self.ratios) if self.ratios else None


def find_mkl() -> str | None:
    """The path of libmkl_rt, if this environment or the system has it."""
    places = [f"{sys.prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/opt/intel/**/lib"]
    for place in places:
        for path in sorted(glob.glob(f"{place}/libmkl_rt.so*"), reverse=True):
            return path
    return None


def why_absent(peer: str, torch_python: str | None, mkl: str | None) -> str | None:
    """Why a side could not start: what it needs is not here.

    Args:
        peer (str): "torch", "mkl", or a side that is always here.
        torch_python (str, optional): A Python that has torch, if not this one.
        mkl (str, optional): The path of libmkl_rt, if not to be found.
    """
    if peer == "mkl":
        path = mkl or find_mkl()
        if path is None:
            return "libmkl_rt was not found (pip install mkl, or --mkl FILE)"
        return (
            None if Path(path).is_file() else f"--mkl is {path!r}, which is not a file"
        )
    if peer != "torch":
        return None
    python = torch_python or sys.executable
    try:
        command = [python, "-c", "import torch"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"--torch-python is {python!r}: {error.strerror}"
    last = (done.stderr.strip().splitlines() or ["import torch failed"])[-1]
    return f"{python} has no torch ({last})" if done.returncode else None


class Side:
    """A child process that serves one side."""

    def __init__(
        self, name: str, folder: str, threads: int, given: dict[str, str]
    ) -> None:
        here = Path(__file__).parent
        environment = {k: v for k, v in os.environ.items() if k not in SLOWING}
        environment |= dict.fromkeys(THREADS, str(threads))
        module, python = name, given.get(name, sys.executable)
        if name == "mkl":
            module, python = "mlx", sys.executable
            mkl = given.get("mkl") or find_mkl()
            if mkl is None:
                raise FileNotFoundError("libmkl_rt was not found (pip install mkl)")
            environment["LD_PRELOAD"] = mkl
            found = environment.get("LD_LIBRARY_PATH", "")
            environment["LD_LIBRARY_PATH"] = f"{Path(mkl).parent}:{found}"
            environment["MKL_INTERFACE_LAYER"] = "LP64"
            environment["MKL_THREADING_LAYER"] = "SEQUENTIAL"
        self._process = subprocess.Popen(
            [python, str(here / "child.py"), module, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("its process has no pipes")
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, **request: Any) -> dict[str, Any]:
        """One answer; RuntimeError with the child's words if it failed."""
        try:
            print(json.dumps(request), file=self._requests, flush=True)
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("its process ended; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


class Sides:
    """The processes in use, and why others are absent.

    Args:
        threads (int): Threads of each.
        given (dict): "torch": a Python that has it; "mkl": the path of libmkl_rt.
    """

    def __init__(self, threads: int, given: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._threads, self._given = threads, given
        self._open: dict[str, Side] = {}
        self.info: dict[str, str] = {}
        self.absent: dict[str, str] = {}

    def get(self, name: str) -> Side | None:
        """The process of a side, started if need be; None if it is absent."""
        if name not in self._open and name not in self.absent:
            try:
                side = Side(name, self._folder.name, self._threads, self._given)
                info = side.ask(do="info")
                self.info |= {name: info["mlx"]} if name == "mkl" else info
                self._open[name] = side
            except (OSError, RuntimeError) as error:
                self.absent[name] = str(error)
        return self._open.get(name)

    def close(self) -> None:
        """End all processes."""
        for side in self._open.values():
            side.close()
        self._folder.cleanup()


def measure(cases: Iterable[Case], sides: Sides, rounds: int) -> Iterator[Row]:
    """Check and time the variants of each case.

    Args:
        cases (Iterable[Case]): What to measure.
        sides (Sides): The processes.
        rounds (int): Times that every variant runs, interleaved.

    Yields:
        Row: One a variant, the baseline first. Wrong answers have no ratios.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the whole rounds so far are yielded.
    """
    for case in cases:
        compared = _answer(case, sides)
        rows = [_prepare(case, v, sides, compared) for v in case.variants]
        timed = [
            (side, variant, row)
            for variant, row in zip(case.variants, rows, strict=True)
            if not row.problem and (side := sides.get(variant.side))
        ]
        spans: dict[str, list[dict[str, float]]] = {}
        interrupted = False
        try:
            for number in range(rounds):
                for side, variant, row in timed if number % 2 == 0 else reversed(timed):
                    answer = side.ask(do="run", task=variant.label)
                    row.seconds.append(answer.pop("seconds"))
                    spans.setdefault(variant.label, []).append(answer)
            for side, variant, _ in timed:
                side.ask(do="forget", task=variant.label)
        except KeyboardInterrupt:
            interrupted = True
        whole = min((len(row.seconds) for *_, row in timed), default=0)
        if interrupted and not whole:
            raise KeyboardInterrupt
        for _, variant, row in timed:
            del row.seconds[whole:]
            _conclude(case, row, rows, spans.get(variant.label, []))
        yield from rows
        if interrupted:
            raise KeyboardInterrupt


def _prepare(
    case: Case, variant: Variant, sides: Sides, compared: NDArray[Any] | None
) -> Row:
    row = Row(case.part, case.name, variant.label, None, not variant.checked)
    row.unit, row.target = case.unit, case.targets.get(variant.label, "")
    side = sides.get(variant.side)
    if side is None:
        row.problem = f"absent: {sides.absent[variant.side]}"
        return row
    spec = case.spec | variant.spec
    try:
        answer = side.ask(do="prepare", task=variant.label, part=case.part, spec=spec)
    except RuntimeError as error:
        row.problem = f"failed: {error}"
        return row
    if variant.checked:
        got = np.load(answer["result"]).astype(np.float64)
        want = case.expected(variant) if compared is None else compared
        row.error = _error(got, want)
        row.correct = row.error <= variant.tolerance
    return row


def _answer(case: Case, sides: Sides) -> NDArray[Any] | None:
    """What another side computes, where no closed form says what is right."""
    if case.compared_with is None:
        return None
    name, extra = case.compared_with
    side = sides.get(name)
    if side is None:
        raise RuntimeError(
            f"[mlx_ane.bench] {case.name} is checked against {name}, which is absent: "
            f"{sides.absent[name]}."
        )
    spec = case.spec | extra
    answer = side.ask(do="prepare", task="answer", part=case.part, spec=spec)
    side.ask(do="forget", task="answer")
    return np.asarray(np.load(answer["result"]))


def _error(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Largest difference, relative to the largest value; infinite if not finite."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    scale = float(np.abs(want).max()) or 1.0
    return float(np.abs(got - want).max()) / scale


def _conclude(
    case: Case, row: Row, rows: list[Row], spans: list[dict[str, float]]
) -> None:
    row.rate = case.work / statistics.median(row.seconds)
    baseline = next(r for r in rows if r.variant == case.baseline)
    if row.correct and baseline.correct:
        row.ratios = [b / s for b, s in zip(baseline.seconds, row.seconds, strict=True)]
    for key in sorted({key for span in spans for key in span}):
        row.spans[key] = statistics.median(span.get(key, 0.0) for span in spans)
