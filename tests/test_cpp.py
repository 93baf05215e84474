"""Builds the C++ test programs and runs them; minutes, so only with -m slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_programs_pass(tmp_path: Path) -> None:
    pytest.importorskip("cmake")
    tools = Path(sys.executable).parent
    configure = [tools / "cmake", "-S", ROOT, "-B", tmp_path, "-DMLX_ANE_TESTS=ON"]
    options = ["-DMLX_ANE_EXTENSION=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, *options], check=True)
    subprocess.run([tools / "cmake", "--build", tmp_path, "-j2"], check=True)
    ran = subprocess.run(
        [tools / "ctest", "--test-dir", tmp_path, "--output-on-failure"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "100% tests passed" in ran.stdout
