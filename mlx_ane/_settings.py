"""The environment variables of mlx_ane: their names, and those that Python reads."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from mlx_ane import _ext
from mlx_ane._types import DEVICES, FALLBACKS, Device

#: Routes to the Neural Engine that are built in, in the order of trial.
ROUTES = tuple(_ext.ane_routes())
#: What may compute Adam.
ADAM = ("auto", "loop", "accelerate")

Word = TypeVar("Word", bound=str)

#: Every variable, with what it sets. C++ reads most of them itself.
VARIABLES = {
    "MLX_ANE_DEVICE": "default device: " + " | ".join(DEVICES),
    "MLX_ANE_ROUTE": "route to the engine: " + " | ".join(ROUTES),
    "MLX_ANE_FALLBACK": "a failed device call: " + " | ".join(FALLBACKS),
    "MLX_ANE_ADAM": "what computes Adam: " + " | ".join(ADAM),
    "MLX_ANE_TIMELINE": "file that gets the timeline of the whole process",
    "MLX_ANE_CACHE_DIR": "folder of verdicts, measurements and compiled programs",
    "MLX_ANE_BLAS_THREADS": "threads of one GEMM",
    "MLX_ANE_OUTPUT_CACHE": "bytes of freed outputs that are kept for later ones",
    "MLX_ANE_SPOT_CHECK": "check one output element every so many device calls",
    "MLX_ANE_FAULTS": "faults to inject into the emulated device",
    "MLX_ANE_EMULATED": "emulated device: chip=M2;numerics=exact;allow=concat,gelu",
}


class Settings:
    """What Python reads of the variables: checked when asked for, not at import.

    An empty value counts as not set.
    """

    @property
    def device(self) -> Device:
        """The default device; ValueError if it is unknown."""
        return _choice("MLX_ANE_DEVICE", DEVICES) or "auto"

    @property
    def route(self) -> str | None:
        """The route to the engine, if one is set; ValueError if it is unknown."""
        return _choice("MLX_ANE_ROUTE", ROUTES)

    @property
    def adam(self) -> str:
        """What computes Adam; ValueError if it is unknown."""
        return _choice("MLX_ANE_ADAM", ADAM) or "auto"

    @property
    def timeline(self) -> str | None:
        """The file that gets the timeline of the whole process."""
        return os.environ.get("MLX_ANE_TIMELINE") or None

    @property
    def cache_dir(self) -> Path:
        """The folder of what later processes can use again; it may not exist."""
        return Path(_ext.cache_directory())


def warn_of_unknown(environ: Mapping[str, str] = os.environ) -> None:
    """One line on stderr for each MLX_ANE_ variable that mlx_ane does not know.

    Other projects have variables of this prefix too, so that none is an error.
    """
    for name in sorted(environ):
        if name.startswith("MLX_ANE_") and name not in VARIABLES:
            nearest = difflib.get_close_matches(name, VARIABLES, 1, 0.0)[0]
            print(
                f"[mlx_ane] warning: environment variable {name} is ignored, as "
                f"mlx_ane has none of this name; the nearest is {nearest}.",
                file=sys.stderr,
            )


def _choice(name: str, valid: tuple[Word, ...]) -> Word | None:
    value = os.environ.get(name)
    if not value:
        return None
    for word in valid:
        if word == value:
            return word
    raise ValueError(f"[mlx_ane] {name} is {value!r}, need one of {', '.join(valid)}.")


#: The settings of this process.
settings = Settings()
