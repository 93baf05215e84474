"""What importing mlx_ane does: check the extension, and what must begin with it."""

from __future__ import annotations

import atexit

import mlx.core as mx

from mlx_ane import _ext, _versions
from mlx_ane._settings import settings, warn_of_unknown


def run() -> None:
    """Check that the extension shares MLX's types, then start what lasts.

    Raises:
        ImportError: If the extension was built for another MLX or nanobind.
    """
    _versions.check(_ext.built_for_mlx)
    try:
        _ext.accepts(mx.zeros((1, 1)))
    except TypeError as error:
        raise ImportError(
            f"[mlx_ane] the extension does not know the arrays of mlx "
            f"{_versions.INSTALLED_MLX}, as it was built with another nanobind; run: "
            f"pip install --force-reinstall --no-cache-dir mlx-ane"
        ) from error
    # Devices and BLAS are gone when the process ends: no task may be at them then.
    atexit.register(_ext.synchronize)
    warn_of_unknown()
    if settings.timeline is not None:
        from mlx_ane.timeline import record_process

        record_process(settings.timeline)
