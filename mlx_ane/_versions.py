"""Version of mlx_ane, and the check that MLX is the release it was built for."""

from __future__ import annotations

import platform
from importlib.util import find_spec

import mlx.core as mx

__version__ = "0.1.0"

#: The MLX that is installed; its stub does not name the attribute.
INSTALLED_MLX: str = mx.__version__  # type: ignore[attr-defined]

#: libmlx has no stable C++ ABI: even a patch release of MLX breaks the extension.
BUILT_FOR_MLX = "0.32.4"


def check(built_for: str = BUILT_FOR_MLX) -> None:
    """Compare the installed MLX with the one that mlx_ane was built for.

    Args:
        built_for (str): The MLX version needed.

    Raises:
        ImportError: If another version of MLX is installed, or this copy of the
            package was not built.
    """
    extension = find_spec("mlx_ane._ext")
    if extension is None or extension.origin is None:
        raise ImportError(
            "[mlx_ane] this copy of the package has no compiled part, as in a source "
            "folder; start Python in another folder, or build here: pip install -ve ."
        )
    if INSTALLED_MLX == built_for:
        return
    package = "mlx" if platform.system() == "Darwin" else "mlx[cpu]"
    raise ImportError(
        f"[mlx_ane] mlx is version {INSTALLED_MLX}, but mlx_ane {__version__} is "
        f"built for {built_for}; run: pip install '{package}=={built_for}'"
    )
