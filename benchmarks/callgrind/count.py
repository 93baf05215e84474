"""Counts the instructions of each kernel under valgrind and compares them.

Start-up and the first run, which allocates, do not count. Exits 1 if a kernel moved by
more than 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
TOLERANCE = 0.01


def count(program: Path, kernel: str) -> int:
    """Instructions of one call of a kernel."""
    # valgrind does not run AVX-512: both the BLAS and our loops take AVX2.
    environment = os.environ | {
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    run = subprocess.run(
        [*command, "--toggle-collect=counted", str(program), kernel],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode != 0 or found is None:
        raise RuntimeError(f"[callgrind] {kernel} failed: {run.stderr[-500:]}")
    return int(found[1])


def compiler(program: Path) -> str:
    """The compiler that built the program: counts hold for it alone."""
    notes = subprocess.run(
        ["readelf", "-p", ".comment", str(program)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"(GCC|clang)[^\n]*?(\d+\.\d+)", notes.stdout)
    return f"{found[1]} {found[2]}" if found else "unknown"


def main() -> int:
    """Compare with the baseline, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--program", type=Path, required=True, help="the built callgrind_kernels"
    )
    parser.add_argument("--write", action="store_true", help="write the baseline")
    args = parser.parse_args()
    listed = subprocess.run([args.program], capture_output=True, text=True, check=False)
    counts = {kernel: count(args.program, kernel) for kernel in listed.stdout.split()}
    built = compiler(args.program)
    if args.write:
        content = {"compiler": built, "instructions": counts}
        BASELINE.write_text(json.dumps(content, indent=2) + "\n")
        return 0
    baseline = json.loads(BASELINE.read_text())
    if baseline["compiler"] != built:
        print(f"counts are for {baseline['compiler']}, this is {built}: not compared")
        return 0
    moved = False
    for kernel, now in counts.items():
        before = baseline["instructions"].get(kernel)
        change = (now - before) / before if before else 1.0
        moved |= abs(change) > TOLERANCE
        print(f"{kernel:20} {before or '-':>12} {now:>12} {change:+8.2%}")
    return int(moved)


if __name__ == "__main__":
    sys.exit(main())
