"""The self-test of the Neural Engine: which way of using it is right and fast here.

Variants (a route, where its files lie, a form of the programs, a MIL dialect) are tried
in order of evidence, each in a process of its own, so that a hang or a crash costs one
variant. The verdict is kept by OS build, chip and version.
`python -m mlx_ane._selftest` prints every finding.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from mlx_ane import _ext
from mlx_ane._console import to_json
from mlx_ane._settings import ROUTES, settings

_apple: Any = getattr(_ext, "apple", None)

Finding = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way of using the engine.

    Attributes:
        route (str): One of `ROUTES`.
        staging (str): For route "in_memory": program files in a folder of ours
            ("url") or in the one that the framework names ("id").
        layout (str): How operands lie, and which program multiplies them.
        dialect (str): "ios18" or "ios16".
    """

    route: str
    staging: str
    layout: str
    dialect: str

    def __str__(self) -> str:
        route = f"{self.route} ({self.staging})" if self.staging else self.route
        return f"{route}, {self.layout}, {self.dialect}"


@dataclass(frozen=True)
class Bounds:
    """Seconds that the self-test may take, and the size that it measures.

    Attributes:
        start (float): For a child to import this package.
        variant (float): For one variant.
        slow (float): The same again, where that was not enough and `fresh` was asked.
        first (float): For all of it at first use.
        fresh (float): For all of it, if asked for.
        probes (float): For the operations of blocks, if asked for.
        pause (float): After many failed compiles the system's compiler refuses all
            for a while (ANEForge).
        size (int): S and N of the products that are timed.
    """

    start: float = 30.0
    variant: float = 8.0
    slow: float = 40.0
    first: float = 60.0
    fresh: float = 300.0
    probes: float = 110.0
    pause: float = 15.0
    size: int = 2048


BOUNDS = Bounds()
#: A variant whose large program takes longer to compile is not the last word.
QUICK_COMPILE = 2.0
#: A compile is weighed as if it served so many calls.
CALLS_OF_A_COMPILE = 1000.0
#: A result that time-outs and crashes left open holds so long, for `auto` alone.
UNDECIDED_SECONDS = 86_400.0

# Who reports what: docs/apple.md. M1 and M2 take the verbose dialect, and on M1 two
# inputs of rank 4 and reshape are reported to fail (ane-train).
_OLD_CHIPS = ("h13", "h14")
_LAYOUTS = (
    "channels_first",
    "transposed",
    "rank3",
    "weight_first",
    "natural",
    "single",
)
_OLD_LAYOUTS = (
    "rank3",
    "channels_first",
    "weight_first",
    "transposed",
    "natural",
    "single",
)
# The last two are written in the first dialect only.
_FULL_LAYOUTS = 4
# What a step down costs, in places of the order: a second route comes before the third
# form of the first. Core ML, which decides itself where a program runs, comes last.
_ROUTE_COST = {r: place for place, r in enumerate(ROUTES) if r != "coreml"}
_LAST_ROUTE, _ID_COST, _DIALECT_COST = 20, 4, 3


def variants(chip: str) -> list[Variant]:
    """Every variant for a chip ("h16g"), the best attested first."""
    old = chip.startswith(_OLD_CHIPS)
    layouts = _OLD_LAYOUTS if old else _LAYOUTS
    dialects = ("ios16", "ios18") if old else ("ios18", "ios16")
    ranked = []
    for route in ROUTES:
        for staging in ("url", "id") if route == "in_memory" else ("",):
            for place, layout in enumerate(layouts):
                for rank, dialect in enumerate(dialects):
                    # Core ML gets a model, which is the same of both dialects.
                    first = place >= _FULL_LAYOUTS or staging == "id"
                    if rank and (first or route == "coreml"):
                        continue
                    cost = _ROUTE_COST.get(route, _LAST_ROUTE) + place
                    cost += _DIALECT_COST * rank + _ID_COST * (staging == "id")
                    ranked.append((cost, Variant(route, staging, layout, dialect)))
    return [variant for _, variant in sorted(ranked, key=lambda pair: pair[0])]


@dataclass
class Verdict:
    """What the self-test found.

    Attributes:
        passed (bool): Some variant answered rightly: the engine can be used.
        reason (str): One line for people.
        route (str): The route to use.
        staging (str): Where the route's files lie.
        layout (str): The layout of the matmul programs to use.
        dialect (str): The MIL dialect to use.
        row_alignment (int): Rows begin at multiples of so many bytes; 0 = 64.
        max_contraction (int): The depth of one dot product to use; 0 = unknown.
        rounding (str): "rounds like the engine", "asked only" or "unknown".
        undecided (bool): Not passed, but something hung or crashed, or time was up:
            another run may tell.
        findings (list): One dict a measurement, as it was found.
    """

    passed: bool
    reason: str
    route: str = ""
    staging: str = ""
    layout: str = ""
    dialect: str = ""
    row_alignment: int = 0
    max_contraction: int = 0
    rounding: str = "unknown"
    undecided: bool = False
    findings: list[Finding] = field(default_factory=list)


def stored_verdict() -> Verdict | None:
    """The verdict for this OS build, chip and version, if there is one.

    What time-outs and crashes left open is no verdict.
    """
    verdict = _stored()
    return None if verdict is None or verdict.undecided else verdict


def lately_undecided() -> Verdict | None:
    """The result of a run that was left open within the last day."""
    verdict = _stored()
    open_now = verdict is not None and verdict.undecided
    return verdict if open_now and verdict_age() < UNDECIDED_SECONDS else None


@functools.cache
def right_forms() -> frozenset[str] | None:
    """Names of the operations and forms that the probes found right here.

    Looked up once: `mlx_ane.translate.choose` takes them.

    Returns:
        frozenset[str], optional: None where no probes are stored.
    """
    verdict = stored_verdict()
    if verdict is None:
        return None
    probed = [f for f in verdict.findings if f["test"] == "probe"]
    return frozenset(f["form"] for f in probed if f["passed"]) if probed else None


def _stored() -> Verdict | None:
    stored = _apple.stored_verdict() if _apple else None
    if stored is None:
        return None
    return Verdict(
        passed=stored["passed"] == "yes",
        reason=stored.get("reason", ""),
        route=stored.get("route", ""),
        staging=stored.get("staging", ""),
        layout=stored.get("layout", ""),
        dialect=stored.get("dialect", ""),
        row_alignment=int(stored.get("row_alignment") or 0),
        max_contraction=int(stored.get("max_contraction") or 0),
        rounding=stored.get("rounding", "unknown"),
        undecided=stored.get("undecided") == "yes",
        findings=json.loads(stored.get("findings") or "[]"),
    )


def verdict_age() -> float:
    """Seconds since the stored verdict was made."""
    return max(0.0, time.time() - Path(_apple.verdict_file()).stat().st_mtime)


def run_in_subprocess(fresh: bool = False, bounds: Bounds | None = None) -> Verdict:
    """Run the self-test in processes of its own, and keep its verdict.

    Args:
        fresh (bool): Try every variant, those that were slow once more, and the
            operations of blocks; else stop at the first good one.
        bounds (Bounds, optional): `BOUNDS` if None.

    Returns:
        Verdict: The verdict, stored for later processes.
    """
    if _apple is None:
        return Verdict(False, _ext.unavailable("ane") or "not built in")
    verdict = _Run(fresh, bounds or BOUNDS).verdict()
    _apple.store_verdict(
        {
            "passed": "yes" if verdict.passed else "no",
            "reason": verdict.reason,
            "route": verdict.route,
            "staging": verdict.staging,
            "layout": verdict.layout,
            "dialect": verdict.dialect,
            "row_alignment": str(verdict.row_alignment or ""),
            "max_contraction": str(verdict.max_contraction or ""),
            "rounding": verdict.rounding,
            "undecided": "yes" if verdict.undecided else "no",
            "findings": json.dumps(verdict.findings),
        }
    )
    right_forms.cache_clear()
    return verdict


def judge(findings: list[Finding]) -> Verdict:
    """Choose the right variant that costs least, and the best depth for it."""
    right = [f for f in findings if f["test"] == "variant" and f["passed"]]
    if not right:
        failed = [f for f in findings if f.get("error")]
        tried = len({_name(f) for f in failed if f["test"] in ("variant", "process")})
        open_end = any(f["test"] == "process" for f in failed)
        reason = "no variant was tried"
        if failed:
            # What the engine said is worth more than that something hung.
            first = min(failed, key=lambda f: (f["test"] == "process", "missing" in f))
            reason = f"none of {tried} variants is right; {_name(first)}: "
            reason += first["error"]
        return Verdict(False, reason, undecided=open_end, findings=findings)

    def cost(found: Finding) -> float:
        speed = _of(findings, "speed", found)
        if speed is None:
            return 1e9 + found["compile_seconds"]
        compile_seconds: float = speed["compile_seconds"]
        net: float = speed["net_seconds"]
        return net + compile_seconds / CALLS_OF_A_COMPILE

    best = min(right, key=cost)
    speeds = [
        f
        for f in findings
        if f["test"] in ("speed", "depth") and f["passed"] and _name(f) == _name(best)
    ]
    deepest = max(speeds, key=lambda f: f["tflops"]) if len(speeds) > 1 else None
    floor = _of(findings, "floor", best)
    rounding = _of(findings, "fingerprint", best)
    words = [f"{_name(best)}: right"]
    if floor is not None:
        words.append(f"{floor['best_seconds'] * 1e6:.0f} us a call")
    if speed := _of(findings, "speed", best):
        words.append(f"{speed['tflops']:.2f} TFLOP/s at {speed['size']}")
    return Verdict(
        True,
        ", ".join(words),
        best["route"],
        best.get("staging", ""),
        best["layout"],
        best["dialect"],
        best.get("row_alignment", 0),
        deepest["k"] if deepest else 0,
        rounding["rounding"] if rounding else "unknown",
        False,
        findings,
    )


def _name(found: Finding) -> str:
    words = [found.get(key, "") for key in ("route", "staging", "layout", "dialect")]
    return str(Variant(*words))


def _of(findings: list[Finding], test: str, best: Finding) -> Finding | None:
    """The passed finding of a test about the same variant."""
    for found in findings:
        if found["test"] == test and found["passed"] and _name(found) == _name(best):
            return found
    return None


class _Run:
    """One run of the self-test: children, one after the other, until the end."""

    def __init__(self, fresh: bool, bounds: Bounds) -> None:
        self.fresh = fresh
        self.bounds = bounds
        self.findings: list[Finding] = []
        self.untried = False
        self.end = time.monotonic() + (bounds.fresh if fresh else bounds.first)

    def verdict(self) -> Verdict:
        chosen = settings.route
        chip = _apple.facts().get("chip", "")
        waiting = [v for v in variants(chip) if chosen in (None, v.route)]
        late = self.try_all(waiting)
        if self.fresh:
            for variant in late:
                self.try_one(variant, self.bounds.slow)
        if not self.right() and self.refused() and self.left() > self.bounds.pause:
            time.sleep(self.bounds.pause)
            self.try_all(self.refused())
        verdict = judge(self.findings)
        if verdict.passed:
            self.look_closer(verdict)
            verdict = judge([f for f in self.findings if f["test"] != "trying"])
        elif self.untried:
            verdict.undecided = True  # the time was up
        return verdict

    def try_all(self, waiting: list[Variant]) -> list[Variant]:
        """Tries variants in order; those that hung or crashed are returned."""
        waiting = list(waiting)
        late: list[Variant] = []
        # A child that has no time to answer would be taken for one that hangs.
        while waiting and self.left() > min(1.0, self.bounds.variant / 2):
            variant = waiting.pop(0)
            found = self.try_one(variant, self.bounds.variant)
            if any("missing" in f for f in found):
                waiting = [v for v in waiting if v.route != variant.route]
            if any(f["test"] == "process" for f in found):
                late.append(variant)
                # Another route may do; sorted() keeps the order otherwise.
                routes = [v.route for v in late]
                waiting.sort(key=lambda v: routes.count(v.route))
            if not self.fresh and _good(found):
                break
        self.untried = bool(waiting)
        return late

    def try_one(self, variant: Variant, seconds: float) -> list[Finding]:
        return self.child(asdict(variant), {"job": "variant"}, seconds)

    def look_closer(self, verdict: Verdict) -> None:
        """Depths and cliffs of the best variant; operations of blocks if asked."""
        best = next(
            f
            for f in self.findings
            if f["test"] == "variant"
            and f["passed"]
            and _name(f) == _name(asdict(verdict))
        )
        floor = _of(self.findings, "floor", best)
        about = {k: best.get(k, "") for k in ("route", "staging", "layout", "dialect")}
        more = {
            "row_alignment": verdict.row_alignment,
            "floor": floor["best_seconds"] if floor else 0.0,
        }
        if self.left() > 0:
            self.child(about, {"job": "details", **more}, self.bounds.variant)
        if self.fresh:
            self.end = time.monotonic() + self.bounds.probes
            skip: list[str] = []
            # A form that hangs or crashes costs itself; the others go on.
            while self.left() > 0:
                job = {"job": "probes", "skip": skip, **more}
                found = self.child(about, job, self.bounds.variant)
                tried = [f["form"] for f in found if f["test"] == "trying"]
                if not tried or not any(f["test"] == "process" for f in found):
                    break
                skip += tried

    def right(self) -> bool:
        return any(f["test"] == "variant" and f["passed"] for f in self.findings)

    def refused(self) -> list[Variant]:
        """The first variant of each route that the compiler refused."""
        first: dict[tuple[str, str], Variant] = {}
        for f in self.findings:
            if f["test"] == "variant" and "compiler" in f.get("error", ""):
                variant = Variant(f["route"], f["staging"], f["layout"], f["dialect"])
                first.setdefault((variant.route, variant.staging), variant)
        return list(first.values())

    def left(self) -> float:
        return self.end - time.monotonic()

    def child(
        self, about: Finding, job: dict[str, Any], seconds: float
    ) -> list[Finding]:
        """The findings of one process; those before a crash or the bound count."""
        spec = {**about, **job, "size": self.bounds.size}
        bound = max(0.0, min(seconds, self.left()))
        found = [
            {"test": f["test"], **about, **f}
            for f in _run_child(spec, bound, self.bounds.start)
        ]
        self.findings += found
        return found


def _good(found: Iterable[Finding]) -> bool:
    """Right, measured, and compiled in good time."""
    return any(
        f["test"] == "speed" and f["passed"] and f["compile_seconds"] <= QUICK_COMPILE
        for f in found
    )


def _run_child(spec: dict[str, Any], seconds: float, start: float) -> list[Finding]:
    # -m looks in the working folder first: let it find this very package.
    home = Path(__file__).parent.parent
    command = [sys.executable, "-m", "mlx_ane._trials", json.dumps(spec)]
    findings: list[Finding] = []
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=words, cwd=home
        )
        assert child.stdout is not None
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(
            target=_read_lines, args=(child.stdout, lines), daemon=True
        ).start()
        ended = None
        deadline = time.monotonic() + start
        bound = start
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                ended = f"no answer within {bound:g} s, its process was ended"
                break
            if line is None:
                words.seek(0)
                said = words.read().decode(errors="replace").strip().split("\n")
                ended = f"its process ended with status {_status(child)}: {said[-1]}"
                break
            if not line.startswith(b'{"test": ') or not line.endswith(b"}\n"):
                continue
            finding = json.loads(line)
            if finding["test"] in ("ready", "trying"):
                deadline, bound = time.monotonic() + seconds, seconds
            if finding["test"] == "done":
                break
            if finding["test"] != "ready":
                findings.append(finding)
        _end(child)
    if ended is not None:
        findings.append({"test": "process", "passed": False, "error": ended})
    return findings


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _status(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child; one that a driver holds is left to the system."""
    if _status(child) is None:
        child.kill()
        _status(child)


def main() -> int:
    """Print the findings and the verdict; 1 if the engine did not pass."""
    parser = argparse.ArgumentParser(prog="mlx_ane._selftest", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--fresh", action="store_true", help="try everything: up to five minutes"
    )
    arguments = parser.parse_args()
    verdict = run_in_subprocess(arguments.fresh)
    if arguments.json:
        print(to_json(asdict(verdict)))
    else:
        for finding in verdict.findings:
            print("  ".join(f"{key} {value}" for key, value in finding.items()))
        print(("passed: " if verdict.passed else "not usable: ") + verdict.reason)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
