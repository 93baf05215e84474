"""mypy --strict finds nothing in mlx_ane, and finds words that no argument takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).resolve().parents[1]


def test_mypy_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: Calls that mypy must refuse.
WRONG = """\
ane.convert(model, device="gpu")
ane.convert(model, policy="some")
ane.convert(model, precision="fp32")
ane.convert(model, objective="speed")
ane.linear(x, x, device="gpu")
ane.linear(x, x, precision="fp32")
ane.matmul(x, x, device="gpu")
ane.nn.ANELinear(4, 8, device="gpu")
ane.fast.scaled_dot_product_attention(x, x, x, scale=1.0, device="gpu")
ane.set_default_device("gpu")
ane.set_fallback("never")
"""
#: And calls that it must not.
RIGHT = """
ane.convert(model, device="auto", policy="frozen", precision="exact", objective="time")
ane.linear(x, x, device="emulated", precision="high")
ane.set_fallback("allow")
device = ane.default_device()
ane.set_default_device(device)
limit: int = ane.set_cache_limit("1GB")
"""


def test_mypy_refuses_words_that_no_argument_takes(tmp_path: Path) -> None:
    head = "import mlx.core as mx\nfrom mlx import nn\nimport mlx_ane as ane\n"
    head += "model, x = nn.Linear(4, 8), mx.ones((4, 4))\n"
    source = tmp_path / "snippet.py"
    source.write_text(head + WRONG + RIGHT)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, str(source)], cwd=ROOT, capture_output=True, text=True
    )
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    lines = range(5, 5 + WRONG.count("\n"))
    assert [int(e.split(":")[1]) for e in errors] == list(lines), done.stdout
    assert all("Literal[" in error for error in errors), done.stdout
