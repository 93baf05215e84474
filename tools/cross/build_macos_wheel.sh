#!/bin/bash
# Builds macOS arm64 wheels on Linux and checks them:
#
#   build_macos_wheel.sh [--public-only] OUTDIR [PYTHON...]
#
# With --public-only, without the routes over private API; no name of it may be left.
# One wheel for each interpreter that MLX ships wheels for and that is found (its
# headers are used); what is built has never been loaded by a Mac. Exit status 3 where
# the compiler or MLX's wheels cannot be downloaded.
set -euo pipefail

public=OFF
if [ "${1:-}" = --public-only ]; then
  public=ON
  shift
fi
if [ $# -lt 1 ]; then
  echo "usage: $0 [--public-only] OUTDIR [PYTHON...]" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
work=${CROSS_DIR:-$root/build/cross}
mkdir -p "$work"
pin() { grep -om1 "\"$1==[0-9.]*" "$root/pyproject.toml" | tr -d '"'; }
mlx=$(pin mlx)
nanobind=$(pin nanobind)

# One interpreter a version: those named, else those on PATH and of pyenv.
pythons=("$@")
if [ ${#pythons[@]} -eq 0 ]; then
  for version in 3.10 3.11 3.12 3.13 3.14; do
    found=
    for python in "$(command -v "python$version" || true)" \
      "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version"; do
      if [ -x "$python" ] && "$python" -c 'import sysconfig, os, sys
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2> /dev/null; then
        found=$python
      fi
    done
    if [ -n "$found" ]; then
      pythons+=("$found")
    else
      echo "no Python $version with headers here: its wheel is not built"
    fi
  done
fi

download() {
  "$@" || {
    echo "cannot download: $*" >&2
    exit 3
  }
}

# MLX's wheels for each macOS version; the 14.0 one is built against.
fetch_mlx() { # pip, tag digits such as 312
  for macos in 14 15 26; do
    for package in "mlx" "mlx-metal"; do
      folder=$work/macos$macos
      mkdir -p "$folder"
      if ! ls "$folder"/${package//-/_}-"${mlx#*==}"-*{cp$2,py3}-*.whl > /dev/null 2>&1; then
        download "$1" download --quiet --no-deps --only-binary=:all: \
          --platform "macosx_${macos}_0_arm64" --python-version "$2" \
          --dest "$folder" "$package==${mlx#*==}"
      fi
    done
  done
}

for python in "${pythons[@]}"; do
  digits=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
  venv=$work/venv-$digits
  if [ ! -x "$venv/bin/ninja" ]; then
    "$python" -m venv "$venv"
    download "$venv/bin/pip" install --quiet --upgrade pip
    download "$venv/bin/pip" install --quiet ziglang==0.17.1 lief==1.0.0 "$nanobind" \
      "scikit-build-core>=0.11" cmake ninja
  fi
  zig=$("$venv/bin/python" -c 'import os, ziglang
print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')
  fetch_mlx "$venv/bin/pip" "$digits"
  sdk=$work/mlx-$digits
  if [ ! -d "$sdk" ]; then
    for wheel in "$work"/macos14/mlx-*-cp"$digits"-*.whl "$work"/macos14/mlx_metal-*.whl; do
      "$venv/bin/python" -m zipfile -e "$wheel" "$sdk"
    done
  fi
  stubs=$work/stubs-$digits
  "$venv/bin/python" "$here/symbols.py" --mlx "$work/macos14" --tag "cp$digits" --out "$stubs"
  wheels=$work/wheels-$digits
  rm -rf "$wheels"
  env PATH="$venv/bin:$PATH" _PYTHON_HOST_PLATFORM=macosx-14.0-arm64 \
    SETUPTOOLS_EXT_SUFFIX=".cpython-$digits-darwin.so" \
    "$venv/bin/pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$wheels" "$root" \
    -C build-dir="$work/build-$digits" \
    -C cmake.define.MLX_ANE_PUBLIC_ONLY=$public \
    -C cmake.define.CMAKE_TOOLCHAIN_FILE="$here/zig-macos-arm64.cmake" \
    -C cmake.define.ZIG="$zig" -C cmake.define.STUBS="$stubs" \
    -C cmake.define.MLX_ROOT="$sdk/mlx/share/cmake/MLX"
  "$venv/bin/python" "$here/check_wheel.py" "$wheels"/*.whl \
    --mlx "$work/macos14" --mlx "$work/macos15" --mlx "$work/macos26"
  if [ "$public" = ON ]; then
    "$venv/bin/python" "$root/tools/public_only.py" "$wheels"/*.whl
  fi
  "$venv/bin/python" "$here/test_check_wheel.py" "$wheels"/*.whl --mlx "$work/macos14"
  mv "$wheels"/*.whl "$out"
done
