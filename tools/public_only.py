"""Looks for names of Apple's private API: public_only.py FILE|FOLDER|WHEEL...

A build with -C cmake.define.MLX_ANE_PUBLIC_ONLY=ON has none in its binary or its
Python files. Exit status 1 and one line for each name that is found.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

#: Classes, frameworks, functions, keys and selectors of the private routes.
PRIVATE = re.compile(
    rb"_ANE[A-Z][a-z]\w*|appleneuralengine|AppleNeuralEngine|k?ANEFModel\w*|Espresso"
    rb"|\be5rt\w*|PrivateFrameworks|hasANE|numANEs|aneArchitectureType|aneSubType"
    rb"|modelWithMILText|inMemoryModel\w*|hexStringIdentifier|setModelURL"
    rb"|(?:compile|load|evaluate|unload)WithQoS\w*|objectWithIOSurface"
)


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the binaries and Python files of a file, folder or wheel."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if re.search(r"\.(py|pyi|so|dylib)$", file.name):
                yield str(file), file.read_bytes()
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
    else:
        yield str(path), path.read_bytes()


def private_names(path: Path) -> list[str]:
    """Each private name once a file, as "file: name"."""
    return [
        f"{name}: {found}"
        for name, content in contents(path)
        for found in sorted({m.decode() for m in PRIVATE.findall(content)})
    ]


def main() -> int:
    found = [line for path in sys.argv[1:] for line in private_names(Path(path))]
    print("\n".join(found) or "no private name")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
