"""tools/test_mlx_lm.py: what it converts, and what it counts as a difference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from test_mlx_lm import Outcome, differences, page, read  # noqa: E402

pytest.importorskip("mlx_lm")

TESTS = """
import os
import unittest
import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.transformer import Linear as InTransformer


class Test(unittest.TestCase):
    def test_layers_are_ours(self):
        found = nn.Linear, Linear, InTransformer, nn.Embedding, nn.QuantizedLinear
        ours = {c.__module__ for c in found} == {"mlx_ane.nn"}
        self.assertEqual(ours, nn.Linear.__name__ != "Linear")

    def test_quantized(self):
        for layer in nn.Linear(64, 8), nn.Embedding(8, 64):
            quantized = layer.to_quantized(32, 8)
            self.assertEqual(quantized.scales.shape, (8, 2))
            ours = [type(m).__module__ == "mlx_ane.nn" for m in (layer, quantized)]
            self.assertEqual(len(set(ours)), 1)

    def test_runs(self):
        x = mx.random.normal((2, 64))
        layer = nn.Linear(64, 8)
        difference = layer(x) - (x @ layer.weight.T + layer.bias)
        self.assertLess(mx.abs(difference).max().item(), 1e-2)

    def test_fails_with_ours_only(self):
        self.assertEqual(nn.Linear.__name__, "Linear")

    def test_fails_always(self):
        with self.subTest("inner"):
            self.fail("because")

    @unittest.skip("not now")
    def test_skipped(self):
        pass


def test_zz_ends_the_process():
    if nn.Linear.__name__ != "Linear":
        os._exit(3)
"""


def test_script_finds_what_differs(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "mlx_lm").mkdir()
    (tmp_path / "mlx_lm" / "_version.py").write_text('__version__ = "0.0.1"\n')
    (tmp_path / "tests" / "test_models.py").write_text(TESTS)
    out = tmp_path / "page.md"
    command = [sys.executable, str(ROOT / "tools" / "test_mlx_lm.py"), str(tmp_path)]
    command += ["--device", "emulated", "--markdown", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lost = [line for line in done.stdout.splitlines() if "passes in plain" in line]
    assert len(lost) == 2
    assert "test_fails_with_ours_only passes in plain MLX: Assert" in lost[0]
    assert "test_zz_ends_the_process passes in plain MLX: it ended the" in lost[1]
    text = out.read_text()
    assert "checkout that calls itself 0.0.1" in text
    assert "| test_models.py | 5 of 6 | 3 of 6 | 2 | 0 |" in text
    assert "| test_models.py | test_fails_always | AssertionError: because |" in text


def test_checkout_without_tests_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "test_mlx_lm.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "has no tests named test_tuner_*.py" in done.stderr


def test_a_failed_subtest_fails_its_test() -> None:
    lines = [
        '{"test": "f.py::A::a", "outcome": "started"}',
        '{"test": "f.py::A::a", "outcome": "failed", "reason": "in part"}',
        '{"test": "f.py::A::a", "outcome": "passed", "reason": ""}',
        '{"test": "f.py::A::b", "outcome": "started"}',
        '{"counters": {"linear_calls": 7}}',
    ]
    found = read("\n".join(lines), "stopped")
    assert found.tests == {"A::a": "failed", "A::b": "failed"}
    assert found.messages == {"A::a": "in part", "A::b": "stopped"}
    plain = Outcome({"A::a": "passed", "A::b": "failed", "A::c": "passed"})
    assert differences(plain, found) == {"A::a": "in part", "A::c": "not run"}
    row = page({"f.py": plain}, {"cpu": {"f.py": found}}, "0")
    assert "| f.py | 2 of 3 | 0 of 3 | 2 | 7 |" in row
