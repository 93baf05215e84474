#!/bin/sh
# Runs the fuzzers of tests/fuzz under ASan and UBSan, one after the other.
#
# Usage: tools/fuzz.sh [minutes for each] [harness...]     (default: 5, all)
# Needs clang with libFuzzer (Debian: clang, libclang-rt-dev) and CMake. What finds
# new code is kept, minimised, in tests/fuzz/corpus/<harness>; the suite replays it.
set -eu

minutes=${1:-5}
[ $# -gt 0 ] && shift
root=$(cd "$(dirname "$0")/.." && pwd)
build=${MLX_ANE_FUZZ_BUILD:-$root/build/fuzz}

cmake -S "$root/tests/fuzz" -B "$build" -DCMAKE_CXX_COMPILER="${CXX:-clang++}" \
  -DPython_EXECUTABLE="$(command -v python3)" >"$build.log" 2>&1 ||
  { mkdir -p "$build" && cat "$build.log" && exit 1; }
if [ $# -eq 0 ]; then
  for source in "$root"/tests/fuzz/fuzz_*.cpp; do
    set -- "$@" "$(basename "$source" .cpp)"
  done
fi

for harness in "$@"; do
  cmake --build "$build" --target "$harness"
  corpus=$root/tests/fuzz/corpus/$harness
  work=$build/work/$harness
  mkdir -p "$corpus" "$work" "$build/found"
  seeds=$root/tests/data/mil
  dictionary=$root/tests/fuzz/$harness.dict
  # A crash leaves its input in found/ and ends the script.
  "$build/$harness" -max_total_time=$((minutes * 60)) -timeout=10 \
    -rss_limit_mb=2048 -max_len=4096 -artifact_prefix="$build/found/" \
    ${MLX_ANE_FUZZ_FLAGS:-} \
    $([ -f "$dictionary" ] && echo "-dict=$dictionary") \
    "$work" "$corpus" "$seeds"
  # The smallest inputs that cover the same, of at most 1 KiB.
  minimal=$(mktemp -d)
  "$build/$harness" -merge=1 -use_counters=0 -max_len=1024 "$minimal" "$corpus" "$work"
  rm -f "$corpus"/*
  cp "$minimal"/* "$corpus"/
  rm -r "$minimal"
done
