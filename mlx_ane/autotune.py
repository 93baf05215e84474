"""policy="auto": times a layer's product on each device of this machine, and chooses.

Measurements are kept in the cache directory, one file per device, and made again when
the machine or a version changes or the file cannot be read.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_ane import _ext, chips
from mlx_ane._device import device_info, resolve
from mlx_ane._preserve import preserved
from mlx_ane._settings import settings
from mlx_ane._types import Device
from mlx_ane._versions import INSTALLED_MLX, __version__
from mlx_ane._watch import checked_shapes, rows_of_products
from mlx_ane.nn import ANELinear, ANEQuantizedLinear, placed

#: Rows of x where convert() is not told the shape of a batch.
DEFAULT_ROWS = 512
#: Longer inputs are tiled by this many rows: one tile is timed.
MOST_ROWS = 2048
#: A device must be better than the BLAS by this factor to be chosen.
MARGIN = 1.05
#: Seconds that repetitions of one product may take, after the first.
SECONDS = 0.1

#: Facts of a device that change how fast it is.
_FACTS = ("os_build", "chip", "numerics", "route", "blas", "blas_threads")


@dataclass(frozen=True)
class Decision:
    """Where a layer was placed, and the numbers that say so."""

    #: "ane", "emulated", "cpu", or "gpu": left to MLX.
    device: str
    objective: str
    #: Rows of x of each call that was taken into account.
    rows: tuple[int, ...]
    #: Seconds of the layer's forward products by device, as measured here.
    seconds: dict[str, float]
    #: The same times published watts: an estimate. Empty unless asked for.
    joules: dict[str, float]
    #: What was not measured, and why.
    notes: tuple[str, ...] = ()
    #: The power that joules were estimated with.
    watts: chips.Watts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The decision as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        unit = "mJ estimated" if self.joules else "ms"
        numbers = ", ".join(
            f"{device} {value * 1e3:.3g} {unit}"
            for device, value in (self.joules or self.seconds).items()
        )
        head = [f"{self.objective}: {numbers}"] if numbers else []
        return "; ".join([*head, *self.notes])


class Tuner:
    """Decisions for the layers of one model.

    Args:
        model (nn.Module): The model, traced for the rows of each layer.
        layers (sequence): Its layers by path.
        objective (str): "time", "energy" or "free_gpu".
        batch_shape (Sequence[int] or Sequence of them, optional): Shapes of the
            model's input; without it every layer is called with 512 rows.

    Raises:
        ValueError: If the shape is malformed or the model refuses it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[tuple[str, nn.Module]],
        objective: str,
        batch_shape: Any = None,
    ) -> None:
        self._objective = objective
        self._rows: dict[str, list[int]] = {}
        if batch_shape is not None:
            for shape in checked_shapes(batch_shape, "convert"):
                for path, rows in rows_of_products(model, layers, shape, "convert"):
                    self._rows.setdefault(path, []).append(rows)

    def decide(
        self, path: str, module: nn.Module, device: str | None, precision: str
    ) -> Decision:
        """Where this plain layer should run; measures what no file tells.

        Args:
            path (str): The layer's path in the model.
            module (nn.Module): The layer.
            device (str, optional): The device to compare with the BLAS.
            precision (str): "default", "high" or "exact".
        """
        name: Device = "cpu" if precision == "exact" else resolve(device, "convert")
        rows = self._rows.get(path, [DEFAULT_ROWS])
        least = _ext.planning.min_rows()
        if name == "cpu" or max(rows) < least:
            why = "few rows" if name != "cpu" else "no other device"
            return Decision("cpu", self._objective, tuple(rows), {}, {}, (why,))
        store, product = Measurements(name), Product.of(module, precision)
        notes: list[str] = []
        calls = []
        for n in rows:
            times = store.get(product, n, notes)
            if n < least and name in times:  # no device takes few rows
                times[name] = times["cpu"]
            calls.append(times)
        measured = set.intersection(*map(set, calls))
        seconds = {d: sum(c[d] for c in calls) for d in calls[0] if d in measured}
        watts: chips.Watts | None = None
        joules = {}
        if self._objective == "energy":
            watts = chips.find(device_info(name)["chip"], "convert")[1].watts
            power = {name: watts.engine, "cpu": watts.cpu, "gpu": watts.gpu}
            joules = {d: s * power[d] for d, s in seconds.items()}
        return Decision(
            choose(joules or seconds, self._objective),
            self._objective,
            tuple(rows),
            seconds,
            joules,
            tuple(dict.fromkeys(notes)),
            watts,
        )


def choose(scores: dict[str, float], objective: str) -> str:
    """The device with the lowest score; the BLAS unless another is clearly better.

    "free_gpu" leaves the GPU out: the layer comes to whichever of our devices is
    the faster one.
    """
    others = {
        device: score
        for device, score in scores.items()
        if device != "cpu" and not (objective == "free_gpu" and device == "gpu")
    }
    best = min(others, key=others.__getitem__, default="cpu")
    return best if best != "cpu" and others[best] * MARGIN < scores["cpu"] else "cpu"


# -- measuring --------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """What a layer multiplies, as far as its speed depends on it."""

    k: int
    n: int
    dtype: mx.Dtype
    frozen: bool
    precision: str = "default"
    #: (group size, bits, mode) of a quantised weight.
    quantization: tuple[int, int, str] | None = None

    @classmethod
    def of(cls, module: Any, precision: str) -> Product:
        """The product of a layer of mlx.nn."""
        if "scales" in module:
            n, packed = module["weight"].shape
            form = (module.group_size, module.bits, module.mode)
            dtype = module["scales"].dtype
            dtype = dtype if dtype != mx.uint8 else mx.float32
            return cls(packed * 32 // module.bits, n, dtype, True, quantization=form)
        n, k = module["weight"].shape
        frozen = "weight" in module._no_grad
        return cls(k, n, module["weight"].dtype, frozen, precision)

    def key(self, rows: int) -> str:
        """The name of its measurement with so many rows."""
        dtype = str(self.dtype).removeprefix("mlx.core.")
        form = "-".join(map(str, self.quantization or ("dense",)))
        state = "frozen" if self.frozen else "trained"
        return f"{rows}x{self.k}x{self.n} {dtype} {form} {state} {self.precision}"

    def layer(self) -> nn.Module:
        """A layer of random numbers that makes this product."""
        scale = self.k**-0.5
        weight = scale * mx.random.normal((self.n, self.k), key=mx.random.key(1))
        layer: Any = nn.Linear(1, 1, bias=False)
        layer.weight = weight.astype(self.dtype)
        if self.quantization:
            layer = layer.to_quantized(*self.quantization)
        if self.frozen:
            layer.freeze()
        mx.eval(layer.parameters())
        return layer


class Measurements:
    """Seconds of products on this machine, kept in a file for each device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._machine = _machine(device)
        self._file = settings.cache_dir / "measurements" / f"{device}.json"

    def get(self, product: Product, rows: int, notes: list[str]) -> dict[str, float]:
        """Seconds by device; `notes` learns why one is missing."""
        timed, scale = min(rows, MOST_ROWS), max(1.0, rows / MOST_ROWS)
        key = product.key(timed)
        seconds = self._read().get(key)
        if seconds is None:
            with preserved():  # making a layer draws random numbers
                seconds, problem = measure(product, timed, self._device)
            if problem:
                notes.append(problem)
            else:  # a device that failed is asked again by the next process
                self._add(key, seconds)
        return {device: s * scale for device, s in seconds.items()}

    def products(self) -> list[tuple[int, int, int, bool, dict[str, float]]]:
        """Plain products that are known: rows, k, n, whether frozen, and seconds."""
        found = []
        for key, seconds in self._read().items():
            shape, _, form, state, precision = key.split(" ")
            if (form, precision) == ("dense", "default"):
                rows, k, n = map(int, shape.split("x"))
                found.append((rows, k, n, state == "frozen", seconds))
        return found

    def _read(self) -> dict[str, dict[str, float]]:
        """What the file says of this machine; nothing if it says anything else."""
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            if content["machine"] != self._machine:
                return {}
            return {
                str(key): {str(d): float(s) for d, s in seconds.items() if s > 0}
                for key, seconds in content["seconds"].items()
                if {"cpu", self._device} <= set(seconds)
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _add(self, key: str, seconds: dict[str, float]) -> None:
        """Join the file's measurements; replaced whole, so never seen half-written."""
        content = {
            "machine": self._machine,
            "seconds": {**self._read(), key: seconds},
        }
        draft = Path(f"{self._file}.{os.getpid()}.new")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
            os.replace(draft, self._file)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            _ext.warn_not_kept(
                "measurements", str(self._file.parent), error.strerror or ""
            )


def measure(
    product: Product, rows: int, device: Device
) -> tuple[dict[str, float], str | None]:
    """Seconds of a forward product by device, and why one could not be timed."""
    plain = product.layer()
    x = mx.random.normal((rows, product.k), key=mx.random.key(0)).astype(product.dtype)
    mx.eval(x)
    kind: Any = ANEQuantizedLinear if product.quantization else ANELinear

    def on(name: str) -> Callable[[mx.array], mx.array]:
        return placed(kind, plain, _device=name, _precision=product.precision)

    seconds = {"cpu": _seconds(on("cpu"), x)[0]}
    if has_gpu():
        with mx.stream(mx.gpu):
            seconds["gpu"] = _seconds(plain, x)[0]
    before = _ext.counters()["device_calls"]
    try:
        best, calls = _seconds(on(device), x)
    except RuntimeError as error:  # a device call failed under MLX_ANE_FALLBACK=error
        return seconds, f"{device}: {error}"
    if _ext.counters()["device_calls"] - before != calls:
        return seconds, f"{device} did not answer every call"
    return {device: best, **seconds}, None


@cache
def host_bandwidth() -> chips.Figure:
    """Bytes/s of converting fp32 rows to fp16 surfaces on this machine, measured."""
    x = np.zeros((1024, 1024), np.float32)
    out = np.zeros((1024, 1024), np.float16)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        _ext.kernels.pack(x, out)
        times.append(time.perf_counter() - start)
    return chips.Figure(chips.CONVERTED * x.size / min(times), "measured here")


def has_gpu() -> bool:
    """Whether MLX itself has a GPU here."""
    return bool(mx.is_available(mx.gpu))


def _seconds(product: Callable[[mx.array], mx.array], x: mx.array) -> tuple[float, int]:
    """The best time of a few calls after a first one, and how many calls it took."""
    mx.eval(product(x))  # compiles, loads, stages
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 3 or (len(times) < 50 and time.perf_counter() < end):
        start = time.perf_counter()
        mx.eval(product(x))
        times.append(time.perf_counter() - start)
    return min(times), len(times) + 1


def _machine(device: Device) -> dict[str, str]:
    """What a measurement depends on besides the product."""
    info = device_info(device)
    facts = {name: info[name] for name in _FACTS if name in info}
    return {
        "os_build": platform.release(),
        "cpu": f"{platform.machine()} {platform.processor()} x {_ext.blas_threads()}",
        **facts,
        "gpu": str(has_gpu()),
        "mlx": INSTALLED_MLX,
        "mlx_ane": __version__,
    }
