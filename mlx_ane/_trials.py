"""What one child process of the self-test does: a variant, a detail, op probes.

`python -m mlx_ane._trials '{"job": "variant", ...}'` prints one finding a line, as it
comes: {"test": "ready"} first, {"test": "done"} last. Private code may crash or hang
here; what was printed by then counts.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_ane import _ext

_apple: Any = getattr(_ext, "apple", None)

Halves = NDArray[np.float16]
Doubles = NDArray[np.float64]
Finding = dict[str, Any]

#: Largest relative error of an fp16 product of well-scaled operands, and of its worst
#: row or column.
TOLERANCE, EDGE_TOLERANCE = 2e-3, 2e-2
#: (S, K, N): rows of K and of N end between multiples of 128 bytes, no two are equal.
SHAPE = (64, 96, 160)
#: The same for Core ML, which keeps small products on the CPU.
LARGE_SHAPE = (512, 1312, 1056)
#: Depths of one dot product whose throughput is compared; the first is measured for
#: every variant.
DEPTHS = (1344, 672, 2688, 5376)


class Way:
    """How a variant reaches the engine, and writes its programs."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.layout: str = spec["layout"]
        self.dialect: str = spec["dialect"]
        large = spec["route"] == "coreml"
        self.shape = LARGE_SHAPE if large else SHAPE
        self.other_shape = (256, *LARGE_SHAPE[1:]) if large else (64, 32, 96)
        self.words = {
            "route": spec["route"],
            "staging": spec.get("staging", ""),
            "row_alignment": spec.get("row_alignment") or 0,
            "on_cpu": spec.get("on_cpu", False),
        }

    def source(self, s: int, k: int, n: int) -> Any:
        """The program y (s, n) = x (s, k) @ w (n, k).T."""
        return _apple.matmul_source(s, k, n, self.layout, self.dialect)

    def operands(self, x: Halves, w: Halves) -> list[NDArray[np.uint16]]:
        """x (S, K) and w (N, K) as the program's ports hold them."""
        if self.layout == "single":
            arrays = [np.concatenate([x, w])]
        elif self.layout in ("channels_first", "transposed"):
            arrays = [x.T, w.T]
        elif self.layout == "weight_first":
            arrays = [x.T, w]
        else:
            arrays = [x, w]
        return [np.ascontiguousarray(a).ravel().view(np.uint16) for a in arrays]

    def products(
        self,
        pairs: list[tuple[Halves, Halves]],
        repeats: int = 0,
        beside: tuple[int, int, int] | None = None,
    ) -> tuple[list[Halves], Finding]:
        """y (S, N) of each pair of operands, and what the trial measured."""
        (s, k), n = pairs[0][0].shape, pairs[0][1].shape[0]
        facts = _apple.run(
            self.source(s, k, n),
            [self.operands(x, w) for x, w in pairs],
            repeats,
            None if beside is None else self.source(*beside),
            **self.words,
        )
        shape = (n, s) if self.layout == "weight_first" else (s, n)
        outputs = [
            np.frombuffer(y, np.float16).reshape(shape) for y in facts.pop("outputs")
        ]
        return [y.T if self.layout == "weight_first" else y for y in outputs], facts


def operands(s: int, k: int, n: int, seed: int) -> tuple[Halves, Halves]:
    """x (S, K) and w (N, K), whose rows differ in size: a swap or transpose shows."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((s, k), np.float32) * np.linspace(0.5, 1.5, s)[:, None]
    w = random.standard_normal((n, k), np.float32) * np.linspace(0.25, 2, n)[:, None]
    return x.astype(np.float16), (w / k**0.5).astype(np.float16)


def errors(y: Halves, x: Halves, w: Halves) -> tuple[float, float]:
    """Relative error against float64, of all and of the worst row or column."""
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    off = np.square(y.astype(np.float64) - expected)
    size = np.square(expected)
    worst = max(
        float(np.max(off.sum(axis) / size.sum(axis), initial=0.0)) for axis in (0, 1)
    )
    return math.sqrt(off.sum() / size.sum()), math.sqrt(worst)


# -- jobs -------------------------------------------------------------------------


def variant(spec: dict[str, Any]) -> Iterator[Finding]:
    """Is one variant right, who computed it, and how fast is it."""
    way = Way(spec)
    missing = _apple.unavailable(way.words["route"])
    if missing is not None:
        yield {"test": "variant", "passed": False, "missing": True, "error": missing}
        return
    found = _finding("variant", lambda: _right(way))
    if not found["passed"] and "relative_error" in found:
        # Rows may lie further apart than most reports say (maderix#35, M5).
        wider = Way({**spec, "row_alignment": 128})
        second = _finding("variant", lambda: _right(wider))
        if second["passed"]:
            way, found = wider, {**second, "row_alignment": 128}
    yield found
    if not found["passed"]:
        return
    yield _finding("fingerprint", lambda: _fingerprint(way))
    floor = _finding("floor", lambda: _floor(way))
    yield floor
    size = spec["size"]
    yield _finding(
        "speed",
        lambda: _speed(way, size, min(DEPTHS[0], size), floor.get("best_seconds", 0.0)),
    )


def details(spec: dict[str, Any]) -> Iterator[Finding]:
    """What else is worth to know of the variant that will be used."""
    way = Way(spec)
    size, floor = spec["size"], spec["floor"]
    for k in DEPTHS[1:]:
        depth = k * size // 2048 // 32 * 32 or 32
        yield _finding("depth", partial(_speed, way, size, depth, floor))
    for test, cliff in CLIFFS.items():
        yield _finding(test, partial(cliff, way))


def _finding(test: str, body: Callable[[], Finding]) -> Finding:
    try:
        found = {"test": test, "passed": True, **body()}
    except (RuntimeError, ValueError) as error:
        return {"test": test, "passed": False, "error": str(error)}
    # JSON has no NaN: the error of an answer that held one.
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }


def _right(way: Way) -> Finding:
    """Two calls with other data, another program loaded and run in between."""
    pairs = [operands(*way.shape, seed) for seed in (0, 1)]
    results, facts = way.products(pairs, beside=way.other_shape)
    found = [errors(y, x, w) for y, (x, w) in zip(results, pairs, strict=True)]
    facts["relative_error"] = max(whole for whole, _ in found)
    facts["edge_error"] = max(worst for _, worst in found)
    facts["passed"] = bool(
        facts["relative_error"] <= TOLERANCE
        and facts["edge_error"] <= EDGE_TOLERANCE
        and facts["unwritten"] == 0
    )
    if not facts["passed"]:
        facts["error"] = (
            f"wrong values: relative error {facts['relative_error']:.2g}, "
            f"{facts['unwritten']} elements not written"
        )
    return facts


def _fingerprint(way: Way) -> Finding:
    s, k, n = way.shape
    x, w = (
        np.array(bits, np.uint16).view(np.float16)
        for bits in _apple.fingerprint_operands(s, k, n)
    )
    (y,), _ = way.products([(x.reshape(s, k), w.reshape(n, k))])
    bits = np.ascontiguousarray(y[0, :2]).view(np.uint16)
    return {"rounding": _apple.judge_fingerprint(int(bits[0]), int(bits[1]))}


def _floor(way: Way) -> Finding:
    """The time of a call that has nothing to compute."""
    pair = operands(64, 32, 64, 0)
    return way.products([pair], repeats=20)[1]


def _speed(way: Way, size: int, k: int, floor: float) -> Finding:
    """TFLOP/s of one product of S = N = size, without the floor of a call."""
    x, w = operands(size, k, size, 0)
    (y,), facts = way.products([(x, w)], repeats=3)
    rows = np.linspace(0, size - 1, 8).astype(int)
    error, _ = errors(y[rows], x[rows], w)
    facts |= {"k": k, "size": size, "relative_error": error}
    facts["net_seconds"] = max(facts["best_seconds"] - floor, 1e-9)
    facts["tflops"] = 2e-12 * size * size * k / facts["net_seconds"]
    facts["passed"] = bool(error <= TOLERANCE and facts["unwritten"] == 0)
    if not facts["passed"]:
        facts["error"] = f"wrong values: relative error {error:.2g}"
    return facts


# -- numeric cliffs ---------------------------------------------------------------


def _row(way: Way, x: Halves, w: Halves) -> Doubles:
    """The first row of the product."""
    return way.products([(x, w)])[0][0][0].astype(np.float64)


def _largest_sum(way: Way) -> Finding:
    """The largest sum of products that comes out right, and what follows it."""
    k, n = 1024, 64
    sums = np.linspace(2048, 65504, n)
    x = np.full((64, k), 16, np.float16)
    w = np.repeat((sums / 16 / k)[:, None], k, 1).astype(np.float16)
    y = _row(way, x, w)
    exact = 16.0 * w.astype(np.float64).sum(1)
    right = np.abs(y - exact) <= 2e-3 * exact
    beyond = y[np.argmin(right)] if not right.all() else None
    last = exact[right].max() if right.any() else 0.0
    return {"largest_right": float(last), "beyond": str(beyond)}


def _smallest_product(way: Way) -> Finding:
    """log2 of the smallest product that a sum of 1024 of them still holds."""
    k, n = 1024, 32
    exponents = -np.arange(n)
    x = np.full((64, k), 2.0**-10, np.float16)
    w = np.repeat((2.0 ** (exponents / 2 + 2))[:, None], k, 1).astype(np.float16)
    y = _row(way, x, w)
    product = 2.0**-10 * w[:, 0].astype(np.float64)
    held = np.abs(y - k * product) <= 0.1 * k * product
    smallest = float(np.log2(product[held].min())) if held.any() else 0.0
    return {"log2_smallest_product": smallest}


CLIFFS: dict[str, Callable[[Way], Finding]] = {
    "cliff of sum": _largest_sum,
    "cliff of product": _smallest_product,
}


def _probes(spec: dict[str, Any]) -> Iterator[Finding]:
    from mlx_ane import _probes  # of blocks, which the other jobs do not need

    yield from _probes.run(spec)


JOBS: dict[str, Callable[[dict[str, Any]], Iterator[Finding]]] = {
    "variant": variant,
    "details": details,
    "probes": _probes,
}


def main(text: str) -> None:
    """Print the findings of a job, one JSON object a line, as they come."""
    spec = json.loads(text)
    print(json.dumps({"test": "ready"}), flush=True)
    for found in JOBS[spec["job"]](spec):
        print(json.dumps(found, allow_nan=False), flush=True)
    print(json.dumps({"test": "done"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
