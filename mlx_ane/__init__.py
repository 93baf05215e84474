"""mlx_ane: MLX models whose matrix products run on Apple's Neural Engine.

>>> import mlx_ane as ane
>>> report = ane.convert(model)
"""

from mlx_ane import _versions

_versions.check()  # before _ext: a mismatch shows as missing symbols or TypeErrors

from mlx_ane import _startup  # noqa: E402

_startup.run()

from mlx_ane import emulated, fast, mil, nn, optimizers, plot  # noqa: E402
from mlx_ane._caches import clear_cache, set_cache_limit  # noqa: E402
from mlx_ane._device import (  # noqa: E402
    default_device,
    device_info,
    is_available,
    restore_devices,
    set_default_device,
    set_fallback,
)
from mlx_ane._ext import counters, reset_counters  # noqa: E402
from mlx_ane._versions import __version__  # noqa: E402
from mlx_ane.compile import compile  # noqa: E402
from mlx_ane.convert import convert, revert  # noqa: E402
from mlx_ane.export import ExportReport, export  # noqa: E402
from mlx_ane.ops import einsum, linear, matmul  # noqa: E402
from mlx_ane.planner import Plan, plan  # noqa: E402
from mlx_ane.report import ConversionReport  # noqa: E402
from mlx_ane.timeline import timeline  # noqa: E402
from mlx_ane.verify import VerificationReport, verify  # noqa: E402

__all__ = [
    "ConversionReport",
    "ExportReport",
    "Plan",
    "VerificationReport",
    "__version__",
    "clear_cache",
    "compile",
    "convert",
    "counters",
    "default_device",
    "device_info",
    "einsum",
    "emulated",
    "export",
    "fast",
    "is_available",
    "linear",
    "matmul",
    "mil",
    "nn",
    "optimizers",
    "plan",
    "plot",
    "reset_counters",
    "restore_devices",
    "revert",
    "set_cache_limit",
    "set_default_device",
    "set_fallback",
    "timeline",
    "verify",
]
