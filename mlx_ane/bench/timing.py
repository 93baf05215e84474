"""What the sides share: a task that is timed, and loops long enough to time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Timed:
    """A function to time and the result that shows that it is right.

    Args:
        run (Callable): Does the work once, to its end.
        result (Callable): Elements of what the work computes.
        least (float): Seconds that one measurement lasts at least.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        result: Callable[[], NDArray[Any]],
        least: float = 0.02,
    ) -> None:
        self._run = run
        self.result = result
        self._least = least
        self._repeat = 0

    def run(self) -> dict[str, float]:
        """Seconds of one run, the mean of as many as `least` needs."""
        if self._repeat == 0:
            self._run()
            self._repeat = max(1, round(self._least / max(self._time(1), 1e-9)))
        return {"seconds": self._time(self._repeat) / self._repeat}

    def _time(self, repeat: int) -> float:
        start = time.perf_counter()
        for _ in range(repeat):
            self._run()
        return time.perf_counter() - start


class WithParts(Timed):
    """A task, and parts of its work that are timed alone, once after each run.

    Args:
        parts (dict): Tasks by the name under which their seconds are given.
    """

    def __init__(
        self,
        run: Callable[[], Any],
        result: Callable[[], NDArray[Any]],
        parts: dict[str, Timed],
        least: float = 0.0,
    ) -> None:
        super().__init__(run, result, least)
        self._parts = parts

    def run(self) -> dict[str, float]:
        """Seconds of one run, and of each part by its name."""
        return super().run() | self.part_seconds()

    def part_seconds(self) -> dict[str, float]:
        """Seconds of each part by its name."""
        return {
            f"{name} seconds": part.run()["seconds"]
            for name, part in self._parts.items()
        }


class Fixed:
    """A probe that returns its own seconds."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds

    def result(self) -> NDArray[Any]:
        """Nothing to check."""
        return np.zeros(0)

    def run(self) -> dict[str, float]:
        """The probe's seconds."""
        return {"seconds": self._seconds()}
