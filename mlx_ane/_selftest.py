"""The self-test of the Neural Engine: does it answer rightly here, and how fast.

`python -m mlx_ane._selftest` tries each program variant (layout, dialect, route)
on asymmetric data against float64, then latency, throughput by contraction depth
and the numeric cliffs. The verdict is kept by OS build, chip and version.
Nothing of a route runs in the caller's process: private code may crash.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_ane import _ext
from mlx_ane._console import to_json
from mlx_ane._settings import ROUTES, settings

_apple: Any = getattr(_ext, "apple", None)

LAYOUTS = ("natural", "channels_first")
DIALECTS = ("ios18", "ios16")
#: Largest relative error of an fp16 product of well-scaled operands.
TOLERANCE = 2e-3
#: Depths of one dot product whose throughput is compared.
DEPTHS = (672, 1344, 2688, 5376)


@dataclass
class Verdict:
    """What the self-test found.

    Attributes:
        passed (bool): Some variant answered rightly: the engine can be used.
        reason (str): One line for people.
        route (str): The route to use.
        layout (str): The layout of the matmul programs to use.
        dialect (str): The MIL dialect to use.
        max_contraction (int): The depth of one dot product to use; 0 = unknown.
        findings (list): One dict a measurement, as the test printed it.
    """

    passed: bool
    reason: str
    route: str = ""
    layout: str = ""
    dialect: str = ""
    max_contraction: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)


def stored_verdict() -> Verdict | None:
    """The verdict for this OS build, chip and version, if there is one."""
    stored = _apple.stored_verdict() if _apple else None
    if stored is None:
        return None
    return Verdict(
        passed=stored["passed"] == "yes",
        reason=stored.get("reason", ""),
        route=stored.get("route", ""),
        layout=stored.get("layout", ""),
        dialect=stored.get("dialect", ""),
        max_contraction=int(stored.get("max_contraction") or 0),
    )


def verdict_age() -> float:
    """Seconds since the stored verdict was made."""
    return max(0.0, time.time() - Path(_apple.verdict_file()).stat().st_mtime)


def run_in_subprocess(timeout: float = 20.0) -> Verdict:
    """Run the self-test in processes of its own, and keep its verdict.

    The second route is tried only where the first gives no right answer.

    Args:
        timeout (float): Seconds that all of it may take. What was found by then
            counts.

    Returns:
        Verdict: The verdict, stored for later processes.
    """
    if _apple is None:
        return Verdict(False, _ext.unavailable("ane") or "not built in")
    chosen = settings.route
    routes = (chosen,) if chosen else ROUTES
    findings: list[dict[str, Any]] = []
    for route in routes:
        findings += _run_route(route, timeout / len(routes))
        if _right(findings):
            break
    verdict = judge(findings)
    _apple.store_verdict(
        {
            "passed": "yes" if verdict.passed else "no",
            "reason": verdict.reason,
            "route": verdict.route,
            "layout": verdict.layout,
            "dialect": verdict.dialect,
            "max_contraction": str(verdict.max_contraction or ""),
        }
    )
    return verdict


def judge(findings: list[dict[str, Any]]) -> Verdict:
    """Choose the fastest right variant, and the best depth of its route."""
    right = _right(findings)
    if not right:
        errors = [f["error"] for f in findings if f.get("error")]
        reason = errors[0] if errors else "no variant gave a right answer"
        return Verdict(False, reason, findings=findings)
    best = min(right, key=lambda f: f["best_seconds"])
    depths = [
        f
        for f in findings
        if f["test"] == "depth" and f["passed"] and f["route"] == best["route"]
    ]
    deepest = max(depths, key=lambda f: f["gflops"])["k"] if depths else 0
    latency = best["best_seconds"] * 1e6
    return Verdict(
        True,
        f"{best['route']}, {best['layout']}, {best['dialect']}: right, "
        f"{latency:.0f} us a call",
        best["route"],
        best["layout"],
        best["dialect"],
        deepest,
        findings,
    )


def _right(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [f for f in findings if f["test"] == "variant" and f["passed"]]


def _run_route(route: str, timeout: float) -> list[dict[str, Any]]:
    """Findings of one child process; those before a crash or the bound count."""
    command = [sys.executable, "-m", "mlx_ane._selftest", "--route", route, "--lines"]
    try:
        # -m looks in the working folder first: let it find this very package.
        home = Path(__file__).parent.parent
        child = subprocess.run(command, capture_output=True, timeout=timeout, cwd=home)
        output, ended = child.stdout, f"it ended with status {child.returncode}"
        complete = child.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, ended = error.stdout or b"", f"it took over {timeout:.0f} s"
        complete = False
    lines = output.decode(errors="replace").splitlines()
    findings = [json.loads(line) for line in lines if line.startswith('{"test": ')]
    if not complete:
        findings.append(
            {
                "test": "process",
                "route": route,
                "passed": False,
                "error": f"the self-test of route {route} did not end well: {ended}",
            }
        )
    return findings


# -- what the child does ----------------------------------------------------------


def measure(route: str) -> Iterator[dict[str, Any]]:
    """Every finding of one route, in order of importance."""
    chosen: tuple[str, str] | None = None
    for layout in LAYOUTS:
        for dialect in DIALECTS:
            found = _finding(
                {"test": "variant", "route": route}
                | {"layout": layout, "dialect": dialect},
                partial(_product, route, layout, dialect, (64, 96, 160), 20),
            )
            yield found
            if found["passed"] and chosen is None:
                chosen = layout, dialect
    if chosen is None:
        return
    for test, cliff in CLIFFS.items():
        yield _finding({"test": test, "route": route}, partial(cliff, route, *chosen))
    for k in DEPTHS:
        yield _finding(
            {"test": "depth", "route": route, "k": k},
            partial(_product, route, *chosen, (256, k, 512), 5),
        )


def _finding(
    facts: dict[str, Any], body: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    try:
        found = {**facts, "passed": True, **body()}
    except (RuntimeError, ValueError) as error:
        return {**facts, "passed": False, "error": str(error)}
    # JSON has no NaN: the error of an answer that held one.
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def _matmul(
    route: str,
    layout: str,
    dialect: str,
    x: NDArray[np.float16],
    w: NDArray[np.float16],
    repeats: int = 0,
) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """y (S, N) = x (S, K) @ w (N, K).T on the engine, and the trial's facts."""
    (s, k), n = x.shape, w.shape[0]
    text, inputs, outputs = _apple.matmul_source(s, k, n, layout, dialect)
    operands = [x, w] if layout == "natural" else [x.T, w.T]
    values = [np.ascontiguousarray(a).ravel().view(np.uint16) for a in operands]
    facts = _apple.run(route, text, inputs, outputs, values, repeats)
    y = np.frombuffer(facts.pop("outputs")[0], np.float16)
    return y.reshape(s, n), facts


def _product(
    route: str, layout: str, dialect: str, shape: tuple[int, int, int], repeats: int
) -> dict[str, Any]:
    """Error against float64 and times of one product of shape (S, K, N)."""
    s, k, n = shape
    random = np.random.default_rng(0)
    # Rows and columns of different size: a swapped or transposed operand shows.
    x = random.normal(size=(s, k)) * np.linspace(0.5, 1.5, s)[:, None]
    w = random.normal(size=(n, k)) / k**0.5 * np.linspace(0.25, 2, n)[:, None]
    x16, w16 = x.astype(np.float16), w.astype(np.float16)
    y, facts = _matmul(route, layout, dialect, x16, w16, repeats)
    expected = x16.astype(np.float64) @ w16.astype(np.float64).T
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    facts["relative_error"] = float(error)
    facts["gflops"] = 2e-9 * s * k * n / facts["best_seconds"]
    facts["passed"] = bool(error <= TOLERANCE and facts["unwritten"] == 0)
    if not facts["passed"]:
        facts["error"] = (
            f"route {route}, {layout}, {dialect}: relative error {error:.2g}, "
            f"{facts['unwritten']} elements not written"
        )
    return facts


def _largest_sum(route: str, layout: str, dialect: str) -> dict[str, Any]:
    """The largest sum of products that comes out right, and what follows it."""
    k, n = 1024, 64
    sums = np.linspace(2048, 65504, n)
    x = np.full((64, k), 16, np.float16)
    w = np.repeat((sums / 16 / k)[:, None], k, 1).astype(np.float16)
    y = _matmul(route, layout, dialect, x, w)[0][0].astype(np.float64)
    exact = 16.0 * w.astype(np.float64).sum(1)
    right = np.abs(y - exact) <= 2e-3 * exact
    beyond = y[np.argmin(right)] if not right.all() else None
    last = exact[right].max() if right.any() else 0.0
    return {"largest_right": float(last), "beyond": str(beyond)}


def _smallest_product(route: str, layout: str, dialect: str) -> dict[str, Any]:
    """log2 of the smallest product that a sum of 1024 of them still holds."""
    k, n = 1024, 32
    exponents = -np.arange(n)
    x = np.full((64, k), 2.0**-10, np.float16)
    w = np.repeat((2.0 ** (exponents / 2 + 2))[:, None], k, 1).astype(np.float16)
    y = _matmul(route, layout, dialect, x, w)[0][0].astype(np.float64)
    product = 2.0**-10 * w[:, 0].astype(np.float64)
    held = np.abs(y - k * product) <= 0.1 * k * product
    smallest = float(np.log2(product[held].min())) if held.any() else 0.0
    return {"log2_smallest_product": smallest}


def _largest_slice(route: str, layout: str, dialect: str) -> dict[str, Any]:
    """The largest value that survives a slice at an offset in the last axis."""
    if dialect != "ios18":
        return {"passed": False, "error": "this machine takes no ios18 program"}
    text = """program(1.3)
[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}})]
{
    func main<ios18>(tensor<fp16, [1, 1, 64, 128]> a0_x) {
        tensor<int32, [4]> begin = const()[name = string("begin"),
            val = tensor<int32, [4]>([0, 0, 0, 32])];
        tensor<int32, [4]> size = const()[name = string("size"),
            val = tensor<int32, [4]>([1, 1, 64, 64])];
        tensor<fp16, [1, 1, 64, 64]> o0_y = slice_by_size(
            begin = begin, size = size, x = a0_x)[name = string("o0_y")];
    } -> (o0_y);
}
"""
    x = np.linspace(1, 65504, 128).astype(np.float16)[None].repeat(64, 0)
    facts = _apple.run(
        route,
        text,
        [("a0_x", [1, 1, 64, 128])],
        [("o0_y", [1, 1, 64, 64])],
        [x.ravel().view(np.uint16)],
        0,
    )
    y = np.frombuffer(facts["outputs"][0], np.float16).reshape(64, 64)
    expected = x[:, 32:96]
    right = y == expected
    largest = float(expected[right].max()) if right.any() else 0.0
    return {"largest_right": largest, "all_right": bool(right.all())}


CLIFFS = {
    "cliff of sum": _largest_sum,
    "cliff of product": _smallest_product,
    "cliff of slice": _largest_slice,
}


def main() -> int:
    """Print the findings and the verdict; 1 if the engine did not pass."""
    parser = argparse.ArgumentParser(prog="mlx_ane._selftest", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--timeout", type=float, default=20.0, help="seconds for all of it"
    )
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.route and _apple is not None:
        for finding in measure(arguments.route):
            print(json.dumps(finding), flush=True)
        return 0
    verdict = run_in_subprocess(arguments.timeout)
    if arguments.json:
        print(to_json(asdict(verdict)))
    else:
        for finding in verdict.findings:
            print("  ".join(f"{key} {value}" for key, value in finding.items()))
        print(("passed: " if verdict.passed else "not usable: ") + verdict.reason)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
