"""The timeline: what each layer did when, as a Chrome trace and as a table."""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_ane import _ext
from mlx_ane._console import table, why_unwritable

#: Sums of "calls", "ms", "bytes" and "flops", by two names.
_Sums = dict[tuple[str, str], dict[str, float]]

_open: timeline | None = None


class timeline:
    """Record spans (pack, evaluate, unpack, gemm_dx, adam, ...) in a block.

    The file is Chrome trace JSON, which Perfetto and chrome://tracing open: one
    lane each for the engine, packing, the BLAS, other kernels and the optimizer,
    and one for the time outside mlx_ane, in which MLX or Python worked. Each span has
    its layer, the bytes that it reads and writes, FLOPs, and both a second. MLX is
    lazy: evaluate what you want to see within the block.

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
        #: Chrome trace events of the spans; filled when the block ends.
        self.events: list[dict[str, Any]] = []
        #: Wall time of the block in seconds.
        self.seconds = 0.0

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
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End recording and write the file."""
        global _open
        _open = None
        self.seconds = time.perf_counter() - self._started
        self.events = in_lanes(json.loads(_ext.timeline_stop()))
        if self.path is not None:
            try:
                self.path.write_text(json.dumps(self._trace()))
            finally:
                self._claimed.close()

    def _trace(self) -> dict[str, Any]:
        """What a viewer opens: names of process and lanes, spans, and gaps."""
        pid = os.getpid()
        program = Path(sys.argv[0])
        program = program.parent if program.name == "__main__.py" else program
        name = f"mlx_ane: {program.name or 'python'}"
        lanes = {event["tid"]: _lane_name(event) for event in self.events}
        gaps = [
            {"ph": "X", "pid": pid, "tid": 0, "name": OUTSIDE, "cat": OUTSIDE}
            | {"ts": start, "dur": stop - start, "args": {}}
            for start, stop in gaps_of(self.events, self.seconds * 1e6)
        ]
        named = [("process_name", 0, {"name": name})]
        for tid, lane in sorted(({0: f"MLX, Python: {OUTSIDE}"} | lanes).items()):
            named.append(("thread_name", tid, {"name": lane}))
            named.append(("thread_sort_index", tid, {"sort_index": tid}))
        metadata = [
            {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": args}
            for kind, tid, args in named
        ]
        return {
            "traceEvents": [*metadata, *gaps, *self.events],
            "displayTimeUnit": "ms",
        }

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
        return self._sums(lambda event: (event["args"]["layer"], event["name"]))

    def outside(self) -> float:
        """Share of the block's wall time in which no span of mlx_ane ran."""
        gaps = gaps_of(self.events, self.seconds * 1e6)
        return sum(stop - start for start, stop in gaps) * 1e-6 / self.seconds

    def summary(self, layers: int = 10) -> str:
        """Totals by kind of span and of the layers that took longest.

        Spans of several threads may add up to more than the wall time.

        Args:
            layers (int): Rows of the second table.

        Returns:
            str: A sentence and two tables; rich.print draws them too.
        """
        parts = [[self._headline()]]
        parts += [table(_aligned(rows)) for rows in self._tables(layers)]
        return "\n\n".join("\n".join(part) for part in parts)

    def _sums(self, key: Callable[[dict[str, Any]], tuple[str, str]]) -> _Sums:
        sums: _Sums = {}
        for event in self.events:
            row = sums.setdefault(
                key(event), {"calls": 0, "ms": 0.0, "bytes": 0, "flops": 0}
            )
            row["calls"] += 1
            row["ms"] += event["dur"] * 1e-3
            row["bytes"] += event["args"]["bytes"]
            row["flops"] += event["args"]["flops"]
        return sums

    def _headline(self) -> str:
        return (
            f"{self.seconds * 1e3:.1f} ms, {self.outside():.0%} of it outside mlx_ane "
            "(MLX and Python)"
        )

    def _tables(self, layers: int) -> list[list[tuple[str, ...]]]:
        """Rows by kind of span, and by layer and kind, the longest first."""

        def rows(name: str, sums: _Sums) -> list[tuple[str, ...]]:
            longest = sorted(sums.items(), key=lambda item: -item[1]["ms"])
            head = (name, "span", "calls", "ms", "% wall", "MB", "GB/s", "GFLOP/s")
            return [head, *(_row(*key, row, self.seconds) for key, row in longest)]

        kinds = rows("lane", self._sums(lambda event: (event["cat"], event["name"])))
        # Names of layers are long: without % and MB, 80 columns are enough.
        of_layers = [row[:4] + row[6:] for row in rows("layer", self.totals())]
        return [kinds, of_layers[: layers + 1]]

    def __rich__(self) -> Any:
        from rich.console import Group  # only rich calls this
        from rich.table import Table

        parts: list[Any] = [self._headline()]
        for head, *rows in self._tables(layers=10):
            drawn = Table()
            for number, name in enumerate(head):
                drawn.add_column(name, justify="left" if number < 2 else "right")
            for row in rows:
                drawn.add_row(*row)
            parts.append(drawn)
        return Group(*parts)


#: Lanes from the top, with the kinds of spans in each; other kinds are "kernels".
LANES = {
    "engine": ("compile", "evaluate"),
    "pack": ("pack_x", "pack_w", "stage", "unpack"),
    "BLAS": ("gemm_forward", "gemm_dx", "gemm_dw", "gemm_other"),
    "kernels": (),
    "optimizer": ("adam", "gradient_norm"),
}
#: Name of the time in which no span ran.
OUTSIDE = "outside mlx_ane"


def in_lanes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each event its lane as category, one row per thread, and its rates."""
    lane_of = {kind: lane for lane, kinds in LANES.items() for kind in kinds}
    threads: dict[str, list[int]] = {lane: [] for lane in LANES}
    for event in events:
        lane = lane_of.get(event["name"], "kernels")
        if event["tid"] not in threads[lane]:
            threads[lane].append(event["tid"])
        row = threads[lane].index(event["tid"])
        event["pid"] = os.getpid()
        event["cat"] = lane
        event["tid"] = 100 * (1 + list(LANES).index(lane)) + row
        args, nanoseconds = event["args"], max(event["dur"] * 1e3, 1.0)
        for unit, amount in (("GB/s", args["bytes"]), ("GFLOP/s", args["flops"])):
            if amount:
                args[unit] = round(amount / nanoseconds, 2)
    return events


def gaps_of(
    events: Iterable[Mapping[str, Any]], end: float
) -> list[tuple[float, float]]:
    """(start, stop) in microseconds of the times up to `end` without a span."""
    gaps, reached = [], 0.0
    for event in sorted(events, key=lambda event: event["ts"]):
        if event["ts"] > reached:
            gaps.append((reached, event["ts"]))
        reached = max(reached, event["ts"] + event["dur"])
    return [*gaps, (reached, end)] if end > reached else gaps


def _lane_name(event: Mapping[str, Any]) -> str:
    row = event["tid"] % 100
    return f"{event['cat']} {row + 1}" if row else str(event["cat"])


def _row(name: str, kind: str, row: dict[str, float], wall: float) -> tuple[str, ...]:
    seconds = max(row["ms"] * 1e-3, 1e-9)

    def number(value: float) -> str:
        return f"{value:.1f}" if value else "-"

    return (
        f"...{name[-27:]}" if len(name) > 30 else name or "-",
        kind,
        f"{row['calls']:.0f}",
        f"{row['ms']:.3f}",
        f"{seconds / wall:.0%}" if wall else "-",
        number(row["bytes"] * 1e-6),
        number(row["bytes"] * 1e-9 / seconds),
        number(row["flops"] * 1e-9 / seconds),
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Numbers, which stand behind the first two columns, end below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (*row[:2], *(c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True)))
        for row in rows
    ]


def _own_name() -> str:
    """What no other process of this run has: the rank under mlx.launch, or the id."""
    rank = os.environ.get("MLX_RANK")
    return f"rank{rank}" if rank else str(os.getpid())


def record_process(path: str) -> None:
    """Record from now to the end of the process (MLX_ANE_TIMELINE).

    A folder gets one file per process. A file belongs to rank 0, or to the first of
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
            place.write_text(json.dumps(whole._trace()))

    atexit.register(finish)
