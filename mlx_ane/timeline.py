"""The timeline: what each layer did when, as a Chrome trace and as a table."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_ane import _ext
from mlx_ane.report import table

_open: timeline | None = None


class timeline:
    """Record spans (pack, evaluate, unpack, gemm_dx, adam, ...) in a block.

    The file is Chrome trace JSON, which Perfetto and chrome://tracing open: one
    row a thread, and with each span its layer, bytes and FLOPs. MLX is lazy:
    evaluate what you want to see within the block.

    Args:
        path (str or Path, optional): The file to write; None keeps the events.

    Raises:
        RuntimeError: If a timeline is open already.

    Example:
        >>> with ane.timeline("step.json") as t:
        ...     mx.eval(step(x, y))
        >>> print(t.summary())
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        #: Chrome trace events; filled when the block ends.
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> timeline:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to record."""
        global _open
        if _open is not None:
            raise RuntimeError(
                "[mlx_ane.timeline] a timeline is open already; close it, or unset "
                "MLX_ANE_TIMELINE, before opening another."
            )
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(
                f"[mlx_ane.timeline] the folder of {self.path} does not exist; "
                f"make it first."
            )
        _open = self
        _ext.timeline_start()

    def stop(self) -> None:
        """End recording and write the file."""
        global _open
        _open = None
        self.events = json.loads(_ext.timeline_stop())
        if self.path is not None:
            trace = {"traceEvents": self.events, "displayTimeUnit": "ms"}
            self.path.write_text(json.dumps(trace))

    def totals(self) -> dict[tuple[str, str], dict[str, float]]:
        """Sums of "calls", "ms", "bytes" and "flops" by (layer, kind of span)."""
        sums: dict[tuple[str, str], dict[str, float]] = {}
        for event in self.events:
            key = (event["args"]["layer"], event["name"])
            row = sums.setdefault(key, {"calls": 0, "ms": 0.0, "bytes": 0, "flops": 0})
            row["calls"] += 1
            row["ms"] += event["dur"] * 1e-3
            row["bytes"] += event["args"]["bytes"]
            row["flops"] += event["args"]["flops"]
        return sums

    def summary(self) -> str:
        """A table of the totals, the longest first; rich.print draws it too."""
        return "\n".join(table(self._rows()))

    def _rows(self) -> list[tuple[str, ...]]:
        head = ("layer", "span", "calls", "ms", "MB", "GB/s", "GFLOP/s")
        rows = sorted(self.totals().items(), key=lambda item: -item[1]["ms"])
        return [head, *(_row(*key, row) for key, row in rows)]

    def __rich__(self) -> Any:
        from rich.table import Table  # only rich calls this

        head, *rows = self._rows()
        drawn = Table()
        for number, name in enumerate(head):
            drawn.add_column(name, justify="left" if number < 2 else "right")
        for row in rows:
            drawn.add_row(*row)
        return drawn


def _row(layer: str, kind: str, row: dict[str, float]) -> tuple[str, ...]:
    seconds = max(row["ms"] * 1e-3, 1e-9)
    return (
        layer or "-",
        kind,
        f"{row['calls']:.0f}",
        f"{row['ms']:.3f}",
        f"{row['bytes'] * 1e-6:.1f}",
        f"{row['bytes'] * 1e-9 / seconds:.1f}",
        f"{row['flops'] * 1e-9 / seconds:.1f}",
    )


def record_process(path: str) -> None:
    """Record from now to the end of the process (MLX_ANE_TIMELINE)."""
    whole = timeline(path)
    whole.start()
    atexit.register(whole.stop)
    # A forked child records nothing, and the file is its parent's.
    os.register_at_fork(after_in_child=lambda: atexit.unregister(whole.stop))
