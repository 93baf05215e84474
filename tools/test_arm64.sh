#!/bin/bash
# Builds the C++ tests for arm64 Linux and runs them under qemu: test_arm64.sh [CTEST ARGUMENTS]
#
# Needs cmake, ninja and Debian's qemu-user-static and g++-aarch64-linux-gnu.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD_DIR:-$root/build/arm64}
PATH=$root/.venv/bin:$PATH
cmake -S "$root/tools/arm64" -B "$build" -G Ninja \
  -DCMAKE_TOOLCHAIN_FILE="$root/tools/arm64/aarch64-linux-gnu.cmake" > /dev/null
cmake --build "$build" --parallel 2 > "$build/build.log" || {
  tail -40 "$build/build.log"
  exit 1
}
ctest --test-dir "$build" --output-on-failure "$@"
