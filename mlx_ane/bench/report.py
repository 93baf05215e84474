"""The findings as text, JSON, Markdown and a plot."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_ane import _ext
from mlx_ane.bench.measure import SLOWING, Row

#: What a reader must know before believing a ratio.
CAVEATS = (
    "MKL, and torch through it, take slower kernels on AMD than on Intel: on an AMD "
    "machine, being faster than they is an artefact of the vendor.",
    "MLX's Linux wheel multiplies on a reference BLAS; MLX on a Mac uses "
    "Accelerate: large ratios to plain MLX are its baseline's weakness.",
    "Ratios are taken within a round; absolute figures depend on what else the "
    "machine did.",
)
#: What each part measures.
PARTS = {
    "adam": "Adam's update of all parameters",
    "embedding": "embedding lookup and its gradient",
    "gemm": "matrix products of the backward",
    "pack": "conversion of fp32 to an engine's fp16 surfaces and back",
    "dispatch": "cost of a call without work",
    "step": "a training step",
}
#: What variants are whose names do not say it.
WORDS = {
    "bandwidth bound": "reading and writing what Adam must, without arithmetic: the "
    "machine's limit, which the other rows are compared with",
    "kernel": "mlx_ane's Adam kernel alone, without MLX",
    "update": "ane.optimizers.AdamW.update, as a training loop calls it",
    "ten passes": "Adam as ten vector operations, each over the whole tensor, as "
    "written with vDSP or NumPy",
    "reference loop": "Adam as a plain scalar loop",
    "mlx": "plain MLX on the CPU",
    "mlx compiled": "plain MLX on the CPU through mx.compile",
    "FMA peak": "multiply-adds without memory: the most that this core computes",
    "cblas": "one call of the BLAS",
    "mx.vjp": "the gradient product through mlx_ane and MLX",
    "reference": "a plain loop",
    "memcpy": "a copy of the same bytes: the machine's limit",
    "straight": "packing without a transpose, as for natural layouts",
    "first forward": "a frozen layer's first call, which stages its weight",
    "second forward": "the same layer again, its weight staged",
    "cpu": "mlx_ane with the forward on the BLAS",
    "cpu, fused ops": "the same with mlx_ane's attention, SwiGLU and cross-entropy",
    "emulated, fused ops": "the same on the emulated engine, which shows no speed of "
    "a real one",
}
RATIO = (
    "time of the baseline, whose ratio is 1, over the time of the variant in the same "
    "round: median [smallest..largest]; above 1 is faster"
)
HEAD = ("case", "variant", "correct", "median", "rate", "ratio [spread]", "target")


@dataclass
class Report:
    """Rows of a run, with where and when they were found."""

    rows: list[Row] = field(default_factory=list)
    info: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    experiment: dict[str, Any] = field(default_factory=dict)
    date: str = field(
        default_factory=lambda: datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    )
    machine: str = field(default_factory=lambda: machine())
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    def json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        rows = [asdict(row) | {"ratio": row.ratio} for row in self.rows]
        return asdict(self) | {"rows": rows, "caveats": CAVEATS}

    def text(self) -> str:
        """Tables for a terminal."""
        lines = [f"{self.machine}, {self.date}"]
        lines += [f"{name}: {value}" for name, value in self.info.items()]
        lines += [f"absent: {name}: {why}" for name, why in self.absent.items()]
        lines += map(_wrapped, warnings() + self._busy())
        cells = [HEAD[1:], *(_cells(row)[1:] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        head, *found = (
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )
        lines += ["", head] if found else []
        case = ""
        for row, line in zip(self.rows, found, strict=True):
            if case != (case := f"{row.part}: {row.case}"):
                lines.append(f"-- {case}")
            lines.append(line)
        lines += ["", *map(_wrapped, [f"ratio: {RATIO}", *self.explained()])]
        lines += _experiment_lines(self.experiment)
        return "\n".join([*lines, *map(_wrapped, CAVEATS)])

    def markdown(self) -> str:
        """benchmarks/RESULTS.md."""
        lines = [
            "# Results of `mlx-ane bench`",
            "",
            "Written by `mlx-ane bench --markdown`, not by hand.",
            "",
            f"- machine: {self.machine}",
            f"- date: {self.date}",
            *(f"- {name}: {value}" for name, value in self.info.items()),
            *(f"- absent: {name}: {why}" for name, why in self.absent.items()),
            *(f"- {line}" for line in self._busy()),
            *(f"- {caveat}" for caveat in CAVEATS),
            "",
            f"A ratio is the {RATIO}.",
        ]
        for part in dict.fromkeys(row.part for row in self.rows):
            lines += ["", f"## {part}", "", _bar(HEAD), _bar(["---"] * len(HEAD))]
            lines += [_bar(_cells(row)) for row in self.rows if row.part == part]
        lines += ["", *(f"- {line}" for line in self.explained())]
        if self.experiment:
            lines += ["", "## Experiment", "", "```"]
            lines += [*_experiment_lines(self.experiment), "```"]
        return "\n".join(lines) + "\n"

    def _busy(self) -> list[str]:
        """A warning if others used the machine as the run began."""
        if self.load < 0.5:
            return []
        return [
            f"warning: the load was {self.load:.1f} before the first case; ratios of a "
            f"busy machine scatter, run again when it is idle."
        ]

    def plot(self, path: str) -> None:
        """Medians of each case as bars."""
        from mlx_ane import plot

        bars: dict[str, dict[str, float]] = {}
        for row in self.rows:
            if row.correct and row.seconds:
                milliseconds = 1e3 * statistics.median(row.seconds)
                bars.setdefault(row.case, {})[row.variant] = milliseconds
        parts = ", ".join(dict.fromkeys(PARTS[row.part] for row in self.rows))
        plot.bench(
            bars,
            path,
            unit="median time in ms, shorter is better",
            title=f"{parts}\n{self.machine}, {self.date}",
            words=WORDS,
        )

    def explained(self) -> list[str]:
        """A line for each variant whose name does not say what it is."""
        shown = dict.fromkeys(row.variant for row in self.rows)
        return [f"{name}: {WORDS[name]}" for name in shown if name in WORDS]


def machine() -> str:
    """The processor and the system."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = _ext.kernels.usable_cores()
    return f"{name}, {cores} cores, {platform.system()} {platform.release()}"


def warnings() -> list[str]:
    """What the environment forces on a BLAS; unset for every measured process."""
    return [
        f"warning: {name}={os.environ[name]} forces a slower BLAS kernel; it is unset "
        f"for every measured process."
        for name in SLOWING
        if os.environ.get(name)
    ]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 80, subsequent_indent="  ")


def _bar(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Row) -> tuple[str, ...]:
    if row.problem:
        return (row.case, row.variant, "-", "-", "-", row.problem, row.target)
    error = "" if row.error is None else f" ({row.error:.1e})"
    correct = ("probe" if row.error is None else "yes" if row.correct else "NO") + error
    ratio = "none: wrong answer"
    if row.ratio is not None:
        ratio = f"{row.ratio:.3f} [{min(row.ratios):.2f}..{max(row.ratios):.2f}]"
    return (
        row.case,
        row.variant,
        correct,
        _time(statistics.median(row.seconds)),
        f"{row.rate:.4g} {row.unit}",
        ratio,
        row.target,
    )


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.4g} ms"


def _experiment_lines(experiment: dict[str, Any]) -> list[str]:
    """Plain MLX and mlx_ane, with the difference in per cent."""
    if not experiment:
        return []
    lines = [
        "",
        f"A training step, {experiment['model']}: plain MLX on the CPU before, mlx_ane "
        f"with its forward on {experiment['device']} after",
        f"{'':28}{'before':>12}{'after':>12}{'delta':>10}",
    ]
    for name, before, after in experiment["rows"]:
        delta = f"{100.0 * (after - before) / before:+.1f} %" if before else "-"
        lines.append(f"{name:28}{before:12.4g}{after:12.4g}{delta:>10}")
    return [*lines, f"losses agree: {experiment['correct']}", ""]
