#!/bin/bash
# 10,000 cycles of the Apple route over the doubles under random faults: soak_doubles.sh [JSON]
#
# Run tools/test_doubles.sh first: it builds the program. The committed result is
# tests/doubles/soak_10000.json.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD_DIR:-$root/build/doubles}
exec "$build/tests/cpp/test_apple_soak" --cycles 10000 --json "${1:-$root/tests/doubles/soak_10000.json}"
