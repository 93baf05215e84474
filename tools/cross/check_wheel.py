"""Checks a macOS wheel on any system: every symbol that it imports must exist.

    python check_wheel.py WHEEL --mlx FOLDER [--mlx FOLDER ...]

A folder holds MLX's wheels for one macOS version. Exit status 1 and one line for
each finding if dyld could not load the extension, or would load what it must not.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from pathlib import Path

import nanobind
from macho import FLAT, SELF, WEAK, Image, Import, MLXWheels
from symbols import LIBCXX, install_name, libcxx_of_mlx, table

LIBMLX = "@rpath/libmlx.dylib"
LIBSYSTEM = "/usr/lib/libSystem.B.dylib"
RPATHS = ["@loader_path/lib", "@loader_path/../mlx/lib"]
MINIMUM_MACOS = (14, 0)
# Present under these names only by mistake.
FORBIDDEN = {
    "_cblas_sgemm": "Accelerate's deprecated BLAS, need cblas_sgemm$NEWLAPACK",
    "__ZNSt3__113__hash_memoryEPKvm": "older systems' libc++ lacks it",
}


def python_symbols() -> set[str]:
    """Names that a Python interpreter exports, from nanobind's linker list."""
    text = (Path(nanobind.cmake_dir()) / "darwin-ld-cpython.sym").read_text()
    return set(re.findall(r"_\w+", text.replace("-U ", " ").replace("-U,", " ")))


def open_wheel(path: Path) -> tuple[list[str], Image, str]:
    """Findings about the wheel's files, its extension, and its Python tag."""
    findings = []
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        match = re.search(r"-(cp3\d+)-(cp3\d+)-(\w+)\.whl$", path.name)
        if match is None or match[1] != match[2]:
            raise ValueError(f"{path.name}: need a wheel for one CPython")
        tag, platform = match[1], match[3]
        if platform != "macosx_14_0_arm64":
            findings.append(f"platform tag {platform}, need macosx_14_0_arm64")
        extension = f"mlx_ane/_ext.cpython-{tag[2:]}-darwin.so"
        binaries = [n for n in names if re.search(r"\.(so|dylib|a)(\.|$)", n)]
        if binaries != [extension]:
            findings.append(f"binaries {binaries}, need {extension} alone")
        for needed in ("mlx_ane/__init__.py",):
            if needed not in names:
                findings.append(f"{needed} is missing")
        inner = next(n for n in names if n.endswith(".dist-info/WHEEL"))
        if f"Tag: {tag}-{tag}-{platform}" not in wheel.read(inner).decode():
            findings.append("the tag inside the wheel differs from its name")
        return findings, Image(wheel.read(extension)), tag


def check_image(image: Image) -> list[str]:
    """Findings that need no other file."""
    findings = []
    if image.architectures != 1 or "ARM64" not in str(image.binary.header.cpu_type):
        findings.append("need exactly one architecture, arm64")
    if image.rpaths() != RPATHS:
        findings.append(f"rpaths {image.rpaths()}, need {RPATHS}")
    if image.minimum_macos()[:2] != MINIMUM_MACOS:
        findings.append(f"minimum macOS {image.minimum_macos()}, need 14.0")
    error = image.signature_error()
    if error:
        findings.append(f"code signature: {error}")
    allowed = {LIBMLX, LIBCXX, LIBSYSTEM} | {install_name(name) for name in table()}
    for library in sorted(image.libraries() - allowed):
        findings.append(f"loads {library}, which no evidence covers")
    for library in (LIBMLX, LIBCXX):
        if library not in image.libraries():
            findings.append(f"does not load {library}")
    # A static C++ runtime has exceptions and type infos of its own.
    for symbol in ("___cxa_throw", "___cxa_begin_catch"):
        if any(i.symbol == symbol and i.library == SELF for i in image.imports()):
            findings.append(f"{symbol} is its own, need the system's libc++")
    return findings


def check_import(found: Import, known: dict[str, set[str]]) -> str | None:
    """Why dyld would not find this symbol, or None."""
    if found.symbol in FORBIDDEN:
        return f"imports {found.symbol}: {FORBIDDEN[found.symbol]}"
    if found.library == FLAT and found.symbol in known["python"]:
        return None
    if found.library == WEAK:
        anywhere = known[LIBMLX] | known[LIBCXX]
        mlx = found.symbol.startswith("__ZN3mlx") or "3mlx4core" in found.symbol
        if not mlx or found.symbol in anywhere:
            return None
    # zig links against Apple's own stub of libSystem.
    if found.library in (SELF, LIBSYSTEM) or found.symbol in known.get(
        found.library, set()
    ):
        return None
    return f"imports {found.symbol} from {found.library}: no evidence that it exists"


def check_against(
    image: Image, tag: str, wheels: MLXWheels, libcxx: set[str]
) -> list[str]:
    """Findings against MLX's wheels for one macOS version."""
    known = {install_name(name): set(symbols) for name, symbols in table().items()}
    known.setdefault(LIBCXX, set()).update(libcxx)
    known[LIBMLX] = wheels.library().exports()
    known["python"] = python_symbols()
    findings = [
        check_import(found, known) for found in sorted(image.imports(), key=str)
    ]
    ours, theirs = image.nanobind_tags(), wheels.core(tag).nanobind_tags()
    if not ours or ours != theirs:
        findings.append(f"nanobind tags {sorted(ours)}, but MLX has {sorted(theirs)}")
    name = wheels.folder.name
    return [f"{finding} ({name})" for finding in findings if finding]


def check(wheel: Path, folders: list[Path]) -> list[str]:
    """All findings; an empty list means that dyld has what the wheel needs.

    The first folder is that of the oldest macOS: what its libc++ has, later ones
    keep.
    """
    findings, image, tag = open_wheel(wheel)
    findings += check_image(image)
    libcxx = libcxx_of_mlx(MLXWheels(folders[0]), tag)
    for folder in folders:
        findings += check_against(image, tag, MLXWheels(folder), libcxx)
    return findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--mlx", type=Path, action="append", required=True)
    arguments = parser.parse_args()
    findings = check(arguments.wheel, arguments.mlx)
    for finding in findings:
        print(f"{arguments.wheel.name}: {finding}")
    if not findings:
        imports = len(open_wheel(arguments.wheel)[1].imports())
        versions = ", ".join(folder.name for folder in arguments.mlx)
        print(f"{arguments.wheel.name}: {imports} imports found in MLX for {versions}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
