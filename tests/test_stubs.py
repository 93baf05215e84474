"""The committed stubs of the extension are those that nanobind would write today.

To write them anew: python -m nanobind.stubgen -m mlx_ane._ext -r -O mlx_ane
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mlx_ane
from mlx_ane import _ext

pytest.importorskip("nanobind")
COMMITTED = Path(mlx_ane.__file__).parent / "_ext"


@pytest.mark.skipif(hasattr(_ext, "apple"), reason="built with the Apple route")
def test_stubs_are_golden(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "mlx_ane._ext"]
    subprocess.run(
        [*command, "-r", "-O", tmp_path], check=True, timeout=120, cwd=tmp_path
    )
    fresh = {p.name: p.read_text() for p in (tmp_path / "_ext").glob("*.pyi")}
    committed = {p.name: p.read_text() for p in COMMITTED.glob("*.pyi")}
    assert sorted(fresh) == sorted(committed)
    for name, text in fresh.items():
        assert text == committed[name], f"mlx_ane/_ext/{name} is out of date"
