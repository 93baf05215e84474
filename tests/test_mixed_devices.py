"""tools/check_mixed_devices.py with a second CPU stream in the place of the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "check_mixed_devices.py"
sys.path.insert(0, str(SCRIPT.parent))

import check_mixed_devices  # noqa: E402


@pytest.fixture(autouse=True)
def eager():
    """Without mx.compile: its C++ compiler takes longer than these tests."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_gradients_through_another_stream(device: str) -> None:
    found = check_mixed_devices.gradients(mx.new_stream(mx.cpu), device)
    assert len(found) == 6
    assert max(found.values()) < 1e-5, found


def test_training_across_streams(device: str) -> None:
    ours = check_mixed_devices.train(True, device)
    plain = check_mixed_devices.train(False, device)
    assert plain[-1] < plain[0]
    assert ours == pytest.approx(plain, rel=1e-5 if device == "cpu" else 5e-3)


@pytest.mark.slow
def test_the_whole_check_passes(device: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, SCRIPT, "--device", device, "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["other side"] in ("gpu", "a second CPU stream")
