"""One product, its gradients and an Adam step on a device, against float64.

They run in a process of its own under fallback "error": a crash, a hang or a setting
of theirs costs that process and not the caller.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_ane import _adam, _device, _ext, optimizers
from mlx_ane._types import Device
from mlx_ane.ops import linear
from mlx_ane.verify import FORWARD_TOLERANCE, relative_error

#: Largest relative error of what the host computes in float32.
HOST_TOLERANCE = 1e-5
#: x: (S, K), w: (N, K); no two sizes are equal, so that a wrong transpose shows.
S, K, N = 64, 160, 96

_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from mlx_ane import _checkup
_checkup.main(sys.argv[2])
"""


@dataclass
class Check:
    """One finding of `mlx-ane doctor`.

    Attributes:
        device (str): The device it is about.
        name (str): What was looked at.
        status (str): "pass", "fail" or "skip".
        value (float, int, bool or str, optional): What was found.
        detail (str): What the value is, or why there is none; one sentence.
    """

    device: str
    name: str
    status: str
    value: float | int | bool | str | None = None
    detail: str = ""


def examine(device: str, timeout: float) -> tuple[list[Check], dict[str, str]]:
    """Check a device in a process of its own.

    Args:
        device (str): "ane", "emulated" or "cpu", available here.
        timeout (float): Seconds until the process is ended. What it had found by
            then counts.

    Returns:
        tuple: The checks, and the facts of `device_info`.
    """
    # The package in use, whatever the working folder holds.
    home = str(Path(__file__).parents[1])
    # The caller's timeline is not the child's to write, its faults are to be met.
    environment = {k: v for k, v in os.environ.items() if k != "MLX_ANE_TIMELINE"}
    if faults := _ext.emulated.faults():
        environment["MLX_ANE_FAULTS"] = faults
    ended = None
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, home, device],
            capture_output=True,
            timeout=timeout,
            env=environment,
        )
        output = child.stdout
        if child.returncode != 0:
            words = child.stderr.decode(errors="replace").split("\n")
            last = next((line for line in reversed(words) if line.strip()), "no words")
            ended = f"its process ended with status {child.returncode}: {last.strip()}"
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        ended = f"hang: no answer within {timeout:g} s, its process was ended"
    checks: list[Check] = []
    facts: dict[str, str] = {}
    # What follows the last end of a line was cut off.
    for line in output.decode(errors="replace").split("\n")[:-1]:
        if line.startswith('{"check": '):
            checks.append(Check(**json.loads(line)["check"]))
        elif line.startswith('{"facts": '):
            facts = json.loads(line)["facts"]
    if ended is not None:
        checks.append(Check(device, "process", "fail", None, ended))
    return checks, facts


# -- what the child does ----------------------------------------------------------


def main(device: Device) -> None:
    """Print facts and checks of a device, one JSON object a line, as they come."""
    facts = _device.device_info(device)
    if device == "cpu":
        facts = {**facts, **_measure_figures()}
    print(json.dumps({"facts": facts}), flush=True)
    for check in measure(device):
        print(json.dumps({"check": asdict(check)}, allow_nan=False), flush=True)


def figures(facts: dict[str, str]) -> dict[str, float]:
    """The host's figures among the facts of device "cpu", taken out of them."""
    return {name: float(facts.pop(name)) for name in FIGURES if name in facts}


#: GFLOP/s of a product of 1024², nanoseconds a parameter of an Adam step.
FIGURES = ("blas_gflops", "adam_ns_per_parameter")


def _measure_figures() -> dict[str, str]:
    n, parameters = 1024, 1 << 20
    x = mx.random.normal((n, n), key=mx.random.key(0))
    adam = optimizers.Adam(learning_rate=1e-3)
    model = {"w": mx.zeros(parameters)}
    gradient = {"w": mx.ones(parameters)}
    mx.eval(x, model, gradient)

    def product() -> None:
        mx.eval(linear(x, x, device="cpu"))

    def step() -> None:
        mx.eval(adam.apply_gradients(gradient, model))

    return {
        FIGURES[0]: str(2e-9 * n**3 / _fastest(product)),
        FIGURES[1]: str(1e9 * _fastest(step) / parameters),
    }


def _fastest(body: Callable[[], None], repeats: int = 4) -> float:
    """Seconds of the fastest call."""
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        body()
        best = min(best, time.perf_counter() - start)
    return best


def measure(device: Device) -> Iterator[Check]:
    """Product, gradients and Adam step; sets fallback and least rows for good."""
    _device.set_fallback("error")
    _ext.set_min_rows(1)  # what was measured here may place this product elsewhere
    random = np.random.default_rng(0)
    # Rows of different size: those of x, w and dy cannot be mistaken.
    x64 = random.normal(size=(S, K)) * np.linspace(0.5, 1.5, S)[:, None]
    w64 = random.normal(size=(N, K)) * np.linspace(0.25, 2, N)[:, None] / K**0.5
    b64 = random.normal(size=N)
    dy64 = random.normal(size=(S, N)) * np.linspace(1.5, 0.5, S)[:, None]
    x, w, b, dy = (mx.array(a.astype(np.float32)) for a in (x64, w64, b64, dy64))
    x64, w64, b64, dy64 = (np.asarray(a, np.float64) for a in (x, w, b, dy))
    (y,), (dx, dw, db) = mx.vjp(
        lambda x, w, b: linear(x, w, b, device=device), [x, w, b], [dy]
    )
    adam = optimizers.Adam(learning_rate=0.1, eps=0.1)
    step = adam.apply_gradients({"w": dw}, {"w": w})["w"]

    def stepped() -> NDArray[np.float64]:
        g = np.asarray(dw, np.float64)
        return w64 - 0.1 * (0.1 * g) / (np.sqrt(0.001 * g**2) + 0.1)

    before = _ext.counters()
    tolerance = FORWARD_TOLERANCE[device]
    yield _compared(device, "product", y, lambda: x64 @ w64.T + b64, tolerance)
    if device != "cpu":
        yield _on_device(device, before, _ext.counters())
    yield _compared(device, "gradient of x", dx, lambda: dy64 @ w64)
    yield _compared(device, "gradient of w", dw, lambda: dy64.T @ x64)
    yield _compared(device, "gradient of b", db, lambda: dy64.sum(0))
    yield _compared(device, "Adam step", step, stepped)
    if device == "cpu":
        yield _adam_implementations()


def _adam_implementations() -> Check:
    """Measure both implementations of Adam; later processes take the faster."""
    rates = _adam.measure()
    _adam.keep(rates)
    words = [f"{_adam.label(name)} {rate:.1f} GB/s" for name, rate in rates.items()]
    faster = max(rates, key=rates.__getitem__)
    if not _ext.kernels.has_accelerate():
        faster = "loop"  # a stand-in says nothing about Accelerate
    return Check("cpu", "Adam", "pass", faster, ", ".join(words))


def _compared(
    device: str,
    name: str,
    got: mx.array,
    expected: Callable[[], NDArray[np.float64]],
    limit: float = HOST_TOLERANCE,
) -> Check:
    """Pass if the relative error against float64 is within the limit."""
    try:
        mx.eval(got)
        error = relative_error(got, expected())
    except (RuntimeError, ValueError) as failure:
        # Its advice is for those who train, not for those who look for the cause.
        cause = str(failure).split(". Set MLX_ANE_FALLBACK", 1)[0]
        return Check(device, name, "fail", None, cause)
    what = "relative error against float64"
    if error <= limit:
        return Check(device, name, "pass", error, f"{what}, at most {limit:g}")
    finite = math.isfinite(error)
    cause = "wrong_values" if finite else "nonfinite"
    detail = f"{cause}: {what} is {error:.2g}, need at most {limit:g}"
    return Check(device, name, "fail", error if finite else None, detail)


def _on_device(device: str, before: dict[str, int], after: dict[str, int]) -> Check:
    """Pass if the device answered; a placed call was right, but on the BLAS."""
    calls = after["device_calls"] - before["device_calls"]
    if calls > 0:
        return Check(device, "device calls", "pass", calls, "products it answered")
    elsewhere = [
        name
        for name, n in after.items()
        if name.startswith(("placed_", "fallback_")) and n > before.get(name, 0)
    ]
    why = ", ".join(elsewhere) or "nothing was counted"
    if "placed_over_budget" in elsewhere:
        why += " (cap_reached: it takes no more programs)"
    return Check(device, "device calls", "fail", 0, f"it answered no product: {why}")
