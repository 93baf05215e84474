"""The environment variables of mlx_ane, read once and checked in one place."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("auto", "ane", "emulated", "cpu")
ROUTES = ("in_memory", "e5rt")
FALLBACKS = ("error", "warn", "allow")

#: Every variable, with what it sets. C++ reads some of them itself.
VARIABLES = {
    "MLX_ANE_DEVICE": "default device: " + " | ".join(DEVICES),
    "MLX_ANE_ROUTE": "route to the engine: " + " | ".join(ROUTES),
    "MLX_ANE_FALLBACK": "a failed device call: " + " | ".join(FALLBACKS),
    "MLX_ANE_TIMELINE": "file that gets the timeline of the whole process",
    "MLX_ANE_CACHE_DIR": "folder of self-test verdicts and measured placements",
    "MLX_ANE_BLAS_THREADS": "threads of one GEMM",
    "MLX_ANE_OUTPUT_CACHE": "bytes of freed outputs that are kept for later ones",
    "MLX_ANE_SPOT_CHECK": "check one output element every so many device calls",
    "MLX_ANE_FAULTS": "faults to inject into the emulated device",
    "MLX_ANE_EMULATED": "emulated device: chip=M2;numerics=exact;allow=concat,gelu",
}


@dataclass(frozen=True)
class Settings:
    """What Python needs of the variables; None where one is not set."""

    device: str
    fallback: str
    timeline: str | None
    cache_dir: Path
    spot_check: int | None


def default_cache_dir() -> Path:
    """The folder that holds verdicts when MLX_ANE_CACHE_DIR is not set."""
    caches = "Library/Caches" if platform.system() == "Darwin" else ".cache"
    return Path.home() / caches / "mlx_ane"


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the environment.

    Args:
        environ (Mapping[str, str]): Variables; an empty value counts as not set.

    Returns:
        Settings: The checked values.

    Raises:
        ValueError: If a variable has an unknown value or is itself unknown.
    """
    ours = {k: v for k, v in environ.items() if k.startswith("MLX_ANE_") and v}
    unknown = sorted(set(ours) - set(VARIABLES))
    if unknown:
        names = ",".join(name.removeprefix("MLX_ANE_") for name in VARIABLES)
        raise ValueError(
            f"[mlx_ane] unknown environment variable {unknown[0]}; "
            f"use one of MLX_ANE_{{{names}}}."
        )
    # Read by C++; checked here, so that a wrong value shows at import.
    _choice(ours, "MLX_ANE_ROUTE", ROUTES)
    _count(ours, "MLX_ANE_BLAS_THREADS", 1)
    _count(ours, "MLX_ANE_OUTPUT_CACHE", 0)
    cache = ours.get("MLX_ANE_CACHE_DIR")
    return Settings(
        device=_choice(ours, "MLX_ANE_DEVICE", DEVICES) or "auto",
        fallback=_choice(ours, "MLX_ANE_FALLBACK", FALLBACKS) or "warn",
        timeline=ours.get("MLX_ANE_TIMELINE"),
        cache_dir=Path(cache) if cache else default_cache_dir(),
        spot_check=_count(ours, "MLX_ANE_SPOT_CHECK", 0),
    )


def _choice(
    environ: Mapping[str, str], name: str, valid: tuple[str, ...]
) -> str | None:
    value = environ.get(name)
    if value is not None and value not in valid:
        raise ValueError(
            f"[mlx_ane] {name} is {value!r}, need one of {', '.join(valid)}."
        )
    return value


def _count(environ: Mapping[str, str], name: str, least: int) -> int | None:
    value = environ.get(name)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < least:
        raise ValueError(
            f"[mlx_ane] {name} is {value!r}, need a whole number of at least {least}."
        )
    return int(value)


#: The settings of this process.
settings = read()
