"""A pytest plugin: every layer that a test builds is one of ours from the start.

    pytest -p mlx_lm_plugin --convert emulated --outcomes FILE tests/test_models.py

Used by tools/test_mlx_lm.py; without --convert it only records the outcomes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mlx_ane")
    group.addoption("--convert", metavar="DEVICE", help="device of every layer")
    group.addoption("--outcomes", metavar="FILE", help="JSON lines, one a report")


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests import anything: mlx.nn hands out our classes."""
    device = config.getoption("--convert")
    if device:
        convert_by_default(device)
    config.pluginmanager.register(Outcomes(config))


def convert_by_default(device: str) -> None:
    """Puts the layers of mlx_ane in the place of mlx.nn's, wherever MLX names them."""
    import mlx.nn

    import mlx_ane as ane
    from mlx_ane import _ext
    from mlx_ane._layers import CLASSES

    ane.set_default_device(device)
    _ext.set_fallback("error")
    _ext.set_min_rows(1)  # the tests' batches are too small for the device otherwise
    for name, module in list(sys.modules.items()):
        if name == mlx.nn.__name__ or name.startswith(mlx.nn.__name__ + "."):
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value in CLASSES:
                    setattr(module, key, CLASSES[value])


class Outcomes:
    """Writes each report when it comes, so that a crash loses none."""

    def __init__(self, config: pytest.Config) -> None:
        path = config.getoption("--outcomes")
        self._file: Any = open(path, "a") if path else None

    def _write(self, **facts: Any) -> None:
        if self._file:
            print(json.dumps(facts), file=self._file, flush=True)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(test=nodeid, outcome="started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(
                test=report.nodeid, outcome=report.outcome, reason=_reason(report)
            )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", reason=_reason(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        if "mlx_ane" in sys.modules:
            counts = sys.modules["mlx_ane"].counters()
            self._write(counters={k: n for k, n in counts.items() if n})
        return (yield)


def _reason(report: Any) -> str:
    """The last line that says what went wrong."""
    if report.passed:
        return ""
    if isinstance(report.longrepr, tuple):  # a skipped test: (file, line, reason)
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    lines = [line.removeprefix("E ").strip() for line in text.splitlines()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [""])[-1 if errors else 0]
