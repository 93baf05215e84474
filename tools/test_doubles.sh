#!/bin/bash
# The Apple route over the doubles: C++ tests, then the whole suite on device ane.
#
#   test_doubles.sh [PYTEST ARGUMENTS]
#
# MLX_ANE_ROUTE chooses the route of the suite. Over coreml the engine has its exact
# rounding, by which that route tells it from a CPU, and tests of other routes' doings
# and of IEEE arithmetic are left out.
#
# Needs Debian's gobjc and libgnustep-base-dev and an interpreter (PYTHON, default
# .venv/bin/python) with the project's build and test packages.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=${BUILD_DIR:-$root/build/doubles}
python=${PYTHON:-$root/.venv/bin/python}
PATH=$(dirname "$python"):$PATH
cmake -S "$root" -B "$build" -G Ninja -DMLX_ANE_DOUBLES=ON -DMLX_ANE_TESTS=ON \
  -DPython_EXECUTABLE="$python" > /dev/null
cmake --build "$build" --parallel 2 > "$build/build.log" || {
  tail -40 "$build/build.log"
  exit 1
}
env -u MLX_ANE_ROUTE ctest --test-dir "$build" --output-on-failure -R test_apple

package=$build/package
rm -rf "$package"
mkdir -p "$package"
cp -r "$root/mlx_ane" "$package/mlx_ane"
rm -rf "$package"/mlx_ane/_ext*.so "$package/mlx_ane/lib"
cmake --install "$build" --prefix "$package" > /dev/null
# From a folder without sources, so that the package is the one built here.
cd "$package"
export PYTHONPATH=$package:$root/tests
MLX_ANE_CACHE_DIR=$(mktemp -d)
export MLX_ANE_CACHE_DIR
trap 'rm -rf "$MLX_ANE_CACHE_DIR"' EXIT
found=$("$python" -c 'import mlx_ane; print(mlx_ane.__file__)')
if [[ $found != "$package"/* ]]; then
  echo "got mlx_ane from $found, need the one in $package: uninstall the other" >&2
  exit 1
fi
options=()
if [ "${MLX_ANE_ROUTE:-}" = coreml ]; then
  export MLX_ANE_EMULATED=${MLX_ANE_EMULATED:-numerics=exact}
  options=(-k "not nonfinite_input_is_not")
fi
MLX_ANE_DEVICE=ane "$python" -m pytest --rootdir "$root" -c "$root/pyproject.toml" \
  -p apple_balance "${options[@]}" "${@:-$root/tests}"
