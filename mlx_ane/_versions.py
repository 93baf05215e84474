"""Version of mlx_ane, and the check that MLX is the release it was built for."""

from __future__ import annotations

import platform
import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import mlx.core as mx

__version__ = "0.1.0"

#: The MLX that is installed; its stub does not name the attribute.
INSTALLED_MLX: str = mx.__version__  # type: ignore[attr-defined]

#: The file of an installed copy that says which sources it was compiled from.
KEY_FILE = "_build_key.txt"

#: libmlx has no stable C++ ABI: even a patch release of MLX breaks the extension.
BUILT_FOR_MLX = "0.32.4"


def check(built_for: str = BUILT_FOR_MLX) -> None:
    """Compare the installed MLX with the one that mlx_ane was built for.

    Args:
        built_for (str): The MLX version needed.

    Raises:
        ImportError: If another version of MLX is installed, or neither this copy of
            the package nor an installed one of the same sources was built.
    """
    if not _compiled_part():
        _borrow_compiled_part()
    if INSTALLED_MLX == built_for:
        return
    package = "mlx" if platform.system() == "Darwin" else "mlx[cpu]"
    raise ImportError(
        f"[mlx_ane] mlx is version {INSTALLED_MLX}, but mlx_ane {__version__} is "
        f"built for {built_for}; run: pip install '{package}=={built_for}'"
    )


def _compiled_part() -> bool:
    extension = find_spec("mlx_ane._ext")
    return extension is not None and extension.origin is not None


def _borrow_compiled_part() -> None:
    """In a folder of sources: use what an installed copy of them has compiled."""
    here = Path(__file__).resolve().parent
    installed = [
        folder
        for folder in (Path(entry).resolve() / "mlx_ane" for entry in sys.path)
        if folder != here and (folder / KEY_FILE).is_file()
    ]
    key = build_key(here.parent)
    for folder in installed:
        if (folder / KEY_FILE).read_text(encoding="utf-8").strip() == key:
            sys.modules["mlx_ane"].__path__.append(str(folder))
            return
    found = (
        f"and the one installed in {installed[0].parent} is of other sources"
        if installed
        else "and none is installed"
    )
    raise ImportError(
        f"[mlx_ane] this folder of sources has no compiled part, {found}; start "
        f"Python in another folder, or build here: pip install -ve ."
    )


def build_key(sources: Path) -> str:
    """What a build of these sources writes into its file `KEY_FILE`.

    Args:
        sources (Path): The folder of the project.

    Returns:
        str: The version and a hash of the C++ code; cmake/extension.cmake makes the
            same.
    """
    names = sorted(
        file.relative_to(sources).as_posix()
        for file in (sources / "src").rglob("*.*")
        if file.suffix in (".cpp", ".h", ".m")
    )
    lines = "".join(
        f"{name} {sha256((sources / name).read_bytes()).hexdigest()}\n"
        for name in names
    )
    return f"{__version__} {sha256(lines.encode()).hexdigest()}"
