"""The timeline: what each layer did when, as a Chrome trace and as a table."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_ane import _ext
from mlx_ane._console import table, why_unwritable

_open: timeline | None = None


class timeline:
    """Record spans (pack, evaluate, unpack, gemm_dx, adam, ...) in a block.

    The file is Chrome trace JSON, which Perfetto and chrome://tracing open: one
    row a thread, and with each span its layer, bytes and FLOPs. MLX is lazy:
    evaluate what you want to see within the block.

    A file that another process records to at the same time is left to it: this one
    writes beside it, to a name with its rank (under mlx.launch) or process id, which
    ``path`` then holds.

    Args:
        path (str or Path, optional): The file to write; None keeps the events.

    Raises:
        RuntimeError: If a timeline is open already.
        ValueError: If the file cannot be written; nothing is recorded.

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
        if self.path is not None:
            why = why_unwritable(self.path)
            if why:
                raise ValueError(
                    f"[mlx_ane.timeline] path is {str(self.path)!r}, which {why}; name "
                    f"a file in a folder that can be written to."
                )
            self._claim(self.path)
        _open = self
        _ext.timeline_start()

    def stop(self) -> None:
        """End recording and write the file."""
        global _open
        _open = None
        self.events = json.loads(_ext.timeline_stop())
        if self.path is not None:
            trace = {"traceEvents": self.events, "displayTimeUnit": "ms"}
            try:
                self.path.write_text(json.dumps(trace))
            finally:
                self._claimed.close()

    def _claim(self, path: Path) -> None:
        """Lock the file, or one beside it, until the recording has been written."""
        self.path, self._claimed = path, path.open("a")
        try:
            fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._claimed.close()
            self.path = path.with_name(f"{path.stem}.{_own_name()}{path.suffix}")
            self._claimed = self.path.open("a")
        except OSError:
            pass  # a file system without locks

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


def _own_name() -> str:
    """What no other process of this run has: the rank under mlx.launch, or the id."""
    rank = os.environ.get("MLX_RANK")
    return f"rank{rank}" if rank else str(os.getpid())


def record_process(path: str) -> None:
    """Record from now to the end of the process (MLX_ANE_TIMELINE).

    A folder gets a file a process. A file belongs to rank 0, or to the first of
    several processes; others write beside it. What cannot be written costs a line on
    stderr, never the process.
    """
    file = Path(path)
    if file.is_dir():
        file /= f"mlx_ane.{_own_name()}.json"
    elif os.environ.get("MLX_RANK", "0") != "0":
        file = file.with_name(f"{file.stem}.{_own_name()}{file.suffix}")
    whole = timeline(file)
    try:
        whole.start()
    except (ValueError, OSError) as error:
        print(f"[mlx_ane] MLX_ANE_TIMELINE records nothing: {error}", file=sys.stderr)
        return
    process = os.getpid()

    def finish() -> None:
        if os.getpid() != process:
            return  # a forked child: the recording is its parent's
        try:
            whole.stop()
        except OSError as error:
            place = Path(tempfile.gettempdir(), f"mlx_ane.{process}.json")
            print(
                f"[mlx_ane] MLX_ANE_TIMELINE cannot be written ({error}); it is in "
                f"{place}",
                file=sys.stderr,
            )
            place.write_text(json.dumps({"traceEvents": whole.events}))

    atexit.register(finish)
