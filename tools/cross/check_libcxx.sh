#!/bin/bash
# Compiles the sources below src/ops with the C++ library of Xcode 15 (LLVM 16): check_libcxx.sh
#
# Nothing is linked or kept: what that library lacks is an error. The library is that
# of zig 0.11. Exit status 3 where it cannot be downloaded.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=${CROSS_DIR:-$root/build/cross}
zig=$work/zig-0.11/ziglang/zig
if [ ! -x "$zig" ]; then
  python3 -m pip install --quiet --no-deps --target "$work/zig-0.11" ziglang==0.11.0 || exit 3
fi
export ZIG_GLOBAL_CACHE_DIR=$work/zig-cache ZIG_LOCAL_CACHE_DIR=$work/zig-cache
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
cd "$root"
# The x86 kernels are not built for a Mac, nor is OpenBLAS used there.
find src/host src/trace src/kernels src/mil src/device src/blas -name '*.cpp' \
  ! -name '*avx*' ! -name openblas.cpp -print0 |
  xargs -0 -P "$(nproc)" -n 1 sh -c '"$0" c++ -target aarch64-macos -std=c++20 -c \
    -Isrc -DMLX_ANE_APPLE -DMLX_ANE_VERSION="\"0\"" -o "$1/$$.o" "$2"' "$zig" "$objects"
