"""Writes linker stubs (.tbd) from symbols.tsv and the imports of MLX's own wheels.

A stub says what a system library exports, so it is only as true as its evidence:
symbols.tsv gives one for each symbol; libc++'s are what MLX's wheels import.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from macho import WEAK, MLXWheels

TABLE = Path(__file__).with_name("symbols.tsv")
LIBCXX = "/usr/lib/libc++.1.dylib"
#: Operator new and delete, and type infos of standard exceptions.
COALESCED = re.compile(r"__Z(n[wa]|d[la]|TISt\d)")
FRAMEWORK_VERSION = {"Foundation": "C"}


def table() -> dict[str, dict[str, str]]:
    """Evidence by library and symbol."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in TABLE.read_text().splitlines():
        if not line.startswith("#"):
            library, symbol, evidence = line.split("\t")
            found[library][symbol] = evidence
    return dict(found)


def install_name(library: str) -> str:
    """Where dyld finds a library of the table."""
    if library == "libc++":
        return LIBCXX
    if library.startswith("lib"):
        return f"/usr/lib/{library}.A.dylib"
    version = FRAMEWORK_VERSION.get(library, "A")
    return (
        f"/System/Library/Frameworks/{library}.framework/Versions/{version}/{library}"
    )


def libcxx_of_mlx(wheels: MLXWheels, tag: str) -> set[str]:
    """libc++ symbols that MLX's own binaries import: they exist where MLX runs.

    What every library may define (operator new, type infos of exceptions) is looked
    up in all of them, libc++ among these.
    """
    images = [wheels.library(), wheels.core(tag)]
    return {
        found.symbol
        for image in images
        for found in image.imports()
        if found.library == LIBCXX
        or (found.library == WEAK and COALESCED.match(found.symbol))
    }


def stub(library: str, symbols: list[str]) -> str:
    """The text of a .tbd file."""
    exported = ", ".join(f"'{symbol}'" for symbol in sorted(symbols))
    return (
        "--- !tapi-tbd\n"
        "tbd-version: 4\n"
        "targets: [ arm64-macos ]\n"
        f"install-name: '{install_name(library)}'\n"
        "current-version: 1\n"
        "exports:\n"
        "  - targets: [ arm64-macos ]\n"
        f"    symbols: [ {exported} ]\n"
        "...\n"
    )


def stub_path(folder: Path, library: str) -> Path:
    if library.startswith("lib"):
        return folder / "usr/lib" / f"{library}.tbd"
    return folder / "Frameworks" / f"{library}.framework" / f"{library}.tbd"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mlx", type=Path, required=True, help="folder of wheels")
    parser.add_argument("--tag", required=True, help="Python tag, such as cp312")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    libraries = {name: list(symbols) for name, symbols in table().items()}
    libraries.setdefault("libc++", []).extend(
        libcxx_of_mlx(MLXWheels(arguments.mlx), arguments.tag)
    )
    for library, symbols in libraries.items():
        path = stub_path(arguments.out, library)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(stub(library, symbols))


if __name__ == "__main__":
    main()
