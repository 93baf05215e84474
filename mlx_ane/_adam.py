"""Which of two implementations computes Adam: our loop, or Apple's Accelerate.

``MLX_ANE_ADAM`` names it; "auto" is the one that `mlx-ane doctor` measured to be the
faster on this machine, and the loop until it did.
"""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from mlx_ane import _ext
from mlx_ane._device import device_info
from mlx_ane._settings import settings
from mlx_ane._versions import __version__

IMPLEMENTATIONS = ("loop", "accelerate")

#: Elements of the tensor that is timed: 28 MB of traffic, beyond most caches.
_ELEMENTS = 1 << 20
_ROUNDS = 7


def label(name: str) -> str:
    """An implementation in words; without Accelerate, own loops stand in for it."""
    if name == "loop":
        return "loop"
    return "Accelerate" if _ext.kernels.has_accelerate() else "Accelerate's stand-in"


@cache
def choose() -> str:
    """Sets the implementation that the environment or a measurement asks for."""
    name = settings.adam
    if name == "auto":
        rates = stored()
        name = max(rates, key=rates.__getitem__) if rates else "loop"
    _ext.kernels.set_adam_implementation(name)
    return name


def measure() -> dict[str, float]:
    """GB/s of both on one tensor, 28 bytes an element; best of interleaved rounds."""
    p, g, m, v = (np.full(_ELEMENTS, x, np.float32) for x in (1, 0.5, 0.1, 0.01))
    before = _ext.kernels.adam_implementation()
    best = dict.fromkeys(IMPLEMENTATIONS, float("inf"))
    try:
        for _ in range(_ROUNDS):
            for name in IMPLEMENTATIONS:
                _ext.kernels.set_adam_implementation(name)
                start = time.perf_counter()
                _ext.kernels.adam(p, g, m, v, weight_decay=0.01)
                best[name] = min(best[name], time.perf_counter() - start)
    finally:
        _ext.kernels.set_adam_implementation(before)
    return {name: 28e-9 * _ELEMENTS / seconds for name, seconds in best.items()}


def stored() -> dict[str, float]:
    """What `keep` kept of this machine, or nothing; never of a stand-in."""
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
        rates = {name: float(content["rates"][name]) for name in IMPLEMENTATIONS}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    known = content["machine"] == _machine() and _ext.kernels.has_accelerate()
    return rates if known else {}


def keep(rates: dict[str, float]) -> None:
    """Keep a measurement for later processes; replaced whole."""
    file = _file()
    draft = Path(f"{file}.{os.getpid()}.new")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": _machine(), "rates": rates}
        draft.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        _ext.warn_not_kept("measurements", str(file.parent), error.strerror or "")


def _file() -> Path:
    return settings.cache_dir / "measurements" / "adam.json"


def _machine() -> dict[str, str]:
    info = device_info("cpu")
    names: tuple[str, ...] = ("os_build", "chip")
    facts = {name: str(info[name]) for name in names if name in info}
    kernel = {"os": platform.release(), "cpu": platform.processor()}
    return {**kernel, **facts, "mlx_ane": __version__}
