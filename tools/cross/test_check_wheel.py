"""Shows that check_wheel.py sees what it must: each damaged copy of a wheel is refused.

python test_check_wheel.py WHEEL --mlx FOLDER [--mlx FOLDER ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

from check_wheel import LIBMLX, check, check_import, open_wheel
from macho import Image, Import


def damages(image: Image) -> list[tuple[str, bytes, bytes, str]]:
    """(what is wrong, bytes, bytes in their place, what the checker must say)."""
    mlx = next(
        i.symbol for i in sorted(image.imports(), key=str) if i.library == LIBMLX
    )
    wrong = mlx[:-1] + ("x" if mlx[-1] != "x" else "y")
    return [
        (
            "a function that MLX lacks",
            mlx.encode() + b"\0",
            wrong.encode() + b"\0",
            f"imports {wrong}",
        ),
        (
            "a function that IOSurface lacks",
            b"_IOSurfaceLock\0",
            b"_IOSurfaceLoch\0",
            "no evidence that it exists",
        ),
        (
            "a BLAS of another name",
            b"_cblas_sgemm$NEWLAPACK\0",
            b"_cblas_sgemm$OLDLAPACK\0",
            "no evidence that it exists",
        ),
        (
            "a library of nobody's",
            b"/usr/lib/libobjc.A.dylib\0",
            b"/usr/lib/libobjb.A.dylib\0",
            "which no evidence covers",
        ),
        (
            "an rpath that misses MLX",
            b"@loader_path/../mlx/lib",
            b"@loader_path/../xlm/lib",
            "rpaths",
        ),
        ("another nanobind", b"_a1_v22", b"_a1_v21", "nanobind tags"),
        ("a byte changed after signing", b"mlx_ane", b"mlx_anf", "code signature"),
    ]


def replace(wheel: Path, out: Path, old: bytes, new: bytes) -> None:
    """Copy a wheel with the bytes of its extension replaced."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".so"):
                if old not in content or len(old) != len(new):
                    raise ValueError(f"{old!r} is not in {name}")
                content = content.replace(old, new)
            target.writestr(name, content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--mlx", type=Path, action="append", required=True)
    arguments = parser.parse_args()
    # Too short to be put in the other's place.
    old_blas = check_import(Import("_cblas_sgemm", "Accelerate"), {})
    missed = int("deprecated" not in (old_blas or ""))
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / arguments.wheel.name
        for what, old, new, expected in damages(open_wheel(arguments.wheel)[1]):
            replace(arguments.wheel, damaged, old, new)
            findings = check(damaged, arguments.mlx[:1])
            seen = any(expected in finding for finding in findings)
            missed += not seen
            print(f"{'refused' if seen else 'MISSED'}: {what}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
