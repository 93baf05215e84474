"""Moves mlx_ane to another MLX release: pins, build, tests.

    python tools/bump_mlx.py 0.32.5             # change the pins, then `make test`
    python tools/bump_mlx.py newest --dry-run   # print what would change

MLX and an extension share types only if both were built with nanobinds of one
"internals version". MLX does not say which it used, so the tag is read from its
wheel, and the newest nanobind of that tag is found by bisection over releases.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Where a version is pinned: file, and for each package the patterns of its pins.
PINS = {
    "pyproject.toml": {
        "mlx": r'("mlx(?:\[cpu\])?==)[^;"]+',
        "nanobind": r'("nanobind==)[^;"]+',
    },
    "mlx_ane/_versions.py": {"mlx": r'^(BUILT_FOR_MLX = ")[^"]+'},
}

#: "nanobind_system_..._v22" since nanobind 3, "v21_system_..." before.
TAG = re.compile(rb"(?:nanobind_system_\w*_|\0)v(\d+)(?=\0|_system_)")
DEFINE = re.compile(rb"define\s+NB_INTERNALS_VERSION\s+(\d+)")


def pip(*arguments: str) -> str:
    """Output of pip; its errors end the program."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"pip {' '.join(arguments)}:\n{done.stderr.strip()}")
    return done.stdout


def read_wheel(requirement: str, member: str) -> bytes:
    """The files of a wheel whose names match `member`, joined."""
    with tempfile.TemporaryDirectory() as folder:
        pip(
            *("download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--dest", folder, requirement),
        )
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if re.search(member, n)]
            return b"\n".join(wheel.read(name) for name in names)


def one_number(pattern: re.Pattern[bytes], data: bytes, where: str) -> int:
    """The number that every match of the pattern has."""
    found = {int(m[1]) for m in pattern.finditer(data)}
    if len(found) != 1:
        sys.exit(f"{where} has internals versions {sorted(found)}, need exactly one")
    return found.pop()


def internals_of_mlx(version: str) -> int:
    """nanobind's internals version in the binary of an MLX release."""
    data = read_wheel(f"mlx=={version}", r"^mlx/core\.[^/]*\.so$")
    return one_number(TAG, data, f"mlx {version}")


def internals_of_nanobind(version: str) -> int:
    """The internals version that a nanobind release compiles in."""
    data = read_wheel(f"nanobind=={version}", r"/src/[^/]*\.(h|cpp)$")
    return one_number(DEFINE, data, f"nanobind {version}")


def releases(package: str) -> list[str]:
    """Releases of a package, oldest first."""
    text = pip("index", "versions", package)
    line = re.search(r"Available versions: (.*)", text)
    if line is None:
        sys.exit(f"pip knows no release of {package}")
    return list(reversed(line[1].split(", ")))


def newest_with(
    wanted: int, versions: list[str], internals: Callable[[str], int]
) -> str:
    """The newest version with this internals version, which never decreases.

    Args:
        wanted (int): The internals version.
        versions (list[str]): Oldest first.
        internals (callable): The internals version of a release.
    """
    low, high = 0, len(versions)  # versions[low - 1] <= wanted < versions[high]
    while low < high:
        middle = (low + high) // 2
        if internals(versions[middle]) <= wanted:
            low = middle + 1
        else:
            high = middle
    if low == 0 or internals(versions[low - 1]) != wanted:
        sys.exit(f"no nanobind release has internals version {wanted}")
    return versions[low - 1]


def repin(text: str, patterns: dict[str, str], versions: dict[str, str]) -> str:
    """The text with every pin of these packages changed."""
    for package, pattern in patterns.items():
        text, count = re.subn(pattern, rf"\g<1>{versions[package]}", text, flags=re.M)
        if count == 0:
            sys.exit(f"found no pin of {package} by {pattern}")
    return text


def main() -> int:
    """Change the pins and run the suite, or print what would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="release of MLX, or 'newest'")
    parser.add_argument("--dry-run", action="store_true", help="change nothing")
    parser.add_argument("--no-test", action="store_true", help="only change the pins")
    args = parser.parse_args()
    mlx = releases("mlx")[-1] if args.version == "newest" else args.version
    wanted = internals_of_mlx(mlx)
    print(f"mlx {mlx}: nanobind internals version {wanted}")
    since_2 = [v for v in releases("nanobind") if int(v.split(".")[0]) >= 2]
    nanobind = newest_with(wanted, since_2, internals_of_nanobind)
    print(f"newest nanobind with it: {nanobind}")
    versions = {"mlx": mlx, "nanobind": nanobind}
    for name, patterns in PINS.items():
        path = ROOT / name
        old = path.read_text()
        new = repin(old, patterns, versions)
        lines = old.splitlines(True), new.splitlines(True)
        print("".join(difflib.unified_diff(*lines, name, name)), end="")
        if not args.dry_run:
            path.write_text(new)
    if args.dry_run or args.no_test:
        return 0
    return subprocess.run(["make", "test"], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
