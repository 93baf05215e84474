"""timeline(): spans of every kind, the trace file, the table, plots."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from matplotlib.figure import Figure
from processes import run_python

import mlx_ane as ane
from mlx_ane.timeline import gaps_of, in_lanes


def step(device: str) -> ane.ConversionReport:
    """One training step of a two-layer model."""
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    report = ane.convert(model, device=device)
    optimizer = ane.optimizers.AdamW(1e-3)
    x = mx.random.normal((40, 64))
    loss, gradients = nn.value_and_grad(model, lambda x: mx.mean(model(x) ** 2))(x)
    optimizer.update(model, gradients)
    mx.eval(loss, model.parameters(), optimizer.state)
    return report


def test_spans_of_a_step(device: str, tmp_path) -> None:
    file = tmp_path / "step.json"
    with ane.timeline(file) as timeline:
        step(device)
    trace = json.loads(file.read_text())
    assert of_mlx_ane(trace["traceEvents"]) == timeline.events
    lanes = {
        event["tid"]: event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name"
    }
    assert lanes[0] == "MLX, Python: outside mlx_ane"
    assert {"BLAS", "optimizer"} <= set(lanes.values())
    assert ({"engine", "pack"} <= set(lanes.values())) == (device != "cpu")
    for event in timeline.events:
        assert event["ph"] == "X"
        assert event["ts"] >= 0 and event["dur"] >= 0
        assert lanes[event["tid"]].startswith(event["cat"])
        assert event["args"]["bytes"] > 0  # all of these move data
        assert event["args"]["GB/s"] >= 0
    gaps = [e["dur"] for e in trace["traceEvents"] if e["name"] == "outside mlx_ane"]
    assert timeline.outside() == pytest.approx(
        sum(gaps) * 1e-6 / timeline.seconds, abs=1e-6
    )
    totals = timeline.totals()
    kinds = {kind for _, kind in totals}
    assert {"gemm_dx", "gemm_dw", "adam"} <= kinds
    on_device = {"pack_x", "pack_w", "evaluate", "unpack"}
    assert (on_device <= kinds) == (device != "cpu")
    assert ("gemm_forward" in kinds) == (device == "cpu")
    assert totals["layers.2", "gemm_dw"]["calls"] == 1
    assert totals["layers.2", "gemm_dw"]["flops"] == 2 * 40 * 96 * 64
    moved = 4 * (40 * 96 + 40 * 64 + 96 * 64)
    assert totals["layers.2", "gemm_dw"]["bytes"] == moved
    assert ("layers.0", "gemm_dx") not in totals  # nobody asked for it
    adam = [row for (_, kind), row in totals.items() if kind == "adam"]
    assert sum(row["bytes"] for row in adam) >= 28 * (2 * 96 * 64 + 96 + 64)
    lead, kinds, layers = timeline.summary().split("\n\n")
    assert lead.endswith(
        f" ms, {timeline.outside():.0%} of it outside mlx_ane (MLX and Python)"
    )
    columns = ["span", "calls", "ms", "%", "wall", "MB", "GB/s", "GFLOP/s"]
    assert kinds.splitlines()[0].split() == ["lane", *columns]
    assert layers.splitlines()[0].split() == [
        *("layer", "span", "calls", "ms", "GB/s", "GFLOP/s")
    ]
    whole = timeline.summary(layers=100).split("\n\n")[2]
    assert any(line.startswith("layers.2  gemm_dw") for line in whole.splitlines())
    assert len(timeline.summary(layers=1).splitlines()) < len(
        timeline.summary().splitlines()
    )
    assert len(kinds.splitlines()) == 2 + len({kind for _, kind in totals})
    assert all(len(line) <= 80 for line in timeline.summary().splitlines())


def test_lanes_of_threads_and_gaps() -> None:
    def span(name: str, tid: int, ts: float, dur: float) -> dict:
        args = {"layer": "", "bytes": 2000, "flops": 0}
        return {"name": name, "tid": tid, "ts": ts, "dur": dur, "args": args}

    events = in_lanes(
        [
            span("gemm_dx", 7, 10, 5),
            span("gemm_dw", 8, 12, 8),
            span("evaluate", 8, 30, 1),
            span("swiglu", 7, 40, 0),
        ]
    )
    assert [(e["cat"], e["tid"]) for e in events] == [
        ("BLAS", 300),
        ("BLAS", 301),
        ("engine", 100),
        ("kernels", 400),
    ]
    assert events[2]["args"]["GB/s"] == 2.0 and "GFLOP/s" not in events[2]["args"]
    assert gaps_of(events, 50) == [(0, 10), (20, 30), (31, 40), (40, 50)]
    assert gaps_of([], 5) == [(0, 5)]


def test_rich_draws_the_same_table() -> None:
    console = pytest.importorskip("rich.console")
    with ane.timeline() as timeline:
        step("cpu")
    wide = console.Console(width=200)
    with wide.capture() as printed:
        wide.print(timeline)
    drawn = [line.replace("│", " ").split() for line in printed.get().splitlines()]
    lines = timeline.summary().splitlines()
    rows = [line for line in lines[1:] if line and not line.startswith("-")]
    heads = [row for row in rows if "span  " in row]
    assert len(heads) == 2
    assert all(row.split() in drawn for row in rows if row not in heads)


def test_nothing_is_recorded_outside(device: str) -> None:
    step(device)
    with ane.timeline() as timeline:
        pass
    assert timeline.events == []


def test_one_at_a_time(tmp_path) -> None:
    with ane.timeline(), pytest.raises(RuntimeError, match="open already"):
        ane.timeline().start()
    with ane.timeline() as timeline:
        step("cpu")
    assert timeline.events
    with pytest.raises(ValueError, match=r"/no, which does not exist"):
        ane.timeline(tmp_path / "no" / "step.json").start()


def test_an_error_in_the_block_still_writes(tmp_path) -> None:
    file = tmp_path / "step.json"
    with pytest.raises(KeyError), ane.timeline(file):
        step("cpu")
        raise KeyError
    assert json.loads(file.read_text())["traceEvents"]


def test_whole_process_by_environment(tmp_path) -> None:
    file = tmp_path / "process.json"
    run_python(
        """
        import mlx.core as mx, mlx_ane as ane
        mx.eval(ane.linear(mx.ones((4, 8)), mx.ones((6, 8)), device="cpu"))
        """,
        MLX_ANE_TIMELINE=str(file),
    )
    assert spans(file) == ["gemm_forward"]


PRODUCT = """
import mlx.core as mx, mlx_ane as ane
mx.eval(ane.linear(mx.ones((4, 8)), mx.ones((6, 8)), device="cpu"))
"""


def of_mlx_ane(events: list[dict]) -> list[dict]:
    """The spans of a trace; names of lanes and gaps are left out."""
    return [e for e in events if e["ph"] == "X" and e["name"] != "outside mlx_ane"]


def spans(file) -> list[str]:
    trace = json.loads(file.read_text())
    return [event["name"] for event in of_mlx_ane(trace["traceEvents"])]


def test_a_folder_gets_a_file_a_process(tmp_path) -> None:
    for _ in range(2):
        run_python(PRODUCT, MLX_ANE_TIMELINE=str(tmp_path))
    first, second = tmp_path.glob("mlx_ane.*.json")
    assert spans(first) == spans(second) == ["gemm_forward"]


@pytest.mark.parametrize("bad", ["no/step.json", "file/step.json"])
def test_an_unwritable_file_costs_one_line(bad: str, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    done = run_python(PRODUCT, MLX_ANE_TIMELINE=str(tmp_path / bad))
    assert done.stderr.count("\n") == 1
    assert "MLX_ANE_TIMELINE records nothing" in done.stderr
    with pytest.raises(ValueError, match=r"is a folder, need a file"):
        ane.timeline(tmp_path).start()
    with ane.timeline():  # nothing was left open
        pass


def test_a_folder_that_goes_away_leaves_the_recording(tmp_path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    done = run_python(
        f"{PRODUCT}import shutil; shutil.rmtree({str(folder)!r})",
        MLX_ANE_TIMELINE=str(folder / "step.json"),
        TMPDIR=str(tmp_path),
    )
    (file,) = tmp_path.glob("mlx_ane.*.json")
    assert spans(file) == ["gemm_forward"]
    assert str(file) in done.stderr and done.stderr.count("\n") == 1


def test_processes_at_a_time_keep_their_own(tmp_path) -> None:
    file = tmp_path / "step.json"
    child = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    )
    run_python(f"{PRODUCT}{PRODUCT}{child}", PRODUCT, MLX_ANE_TIMELINE=str(file))
    (beside,) = tmp_path.glob("step.*.json")
    assert (len(spans(file)), len(spans(beside))) == (2, 1)
    run_python(PRODUCT, MLX_ANE_TIMELINE=str(file))  # a later run takes the name again
    assert len(spans(file)) == 1
    with ane.timeline(file) as one:
        run_python(PRODUCT, MLX_ANE_TIMELINE=str(file))
    assert one.path == file and spans(file) == []


def test_a_rank_has_a_file_of_its_own(tmp_path) -> None:
    for rank in "01":
        run_python(PRODUCT, MLX_ANE_TIMELINE=str(tmp_path / "step.json"), MLX_RANK=rank)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["step.json", "step.rank1.json"]


def test_plots(device: str, tmp_path) -> None:
    with ane.timeline(tmp_path / "step.json") as timeline:
        report = step(device)
    placement = ane.plot.placement(report)
    model = nn.Sequential(nn.Linear(64, 64))
    ane.convert(model, device=device)
    checked = ane.verify(model, mx.random.normal((40, 64)))
    figures = [
        ane.plot.losses({"mlx": [3.0, 2.0], "ane": [(10, 3.0), (20, 2.0)]}),
        ane.plot.timeline(timeline.events),
        ane.plot.timeline(tmp_path / "step.json"),
        placement,
        ane.plot.errors(checked),
        ane.plot.bench({"256x768": {"mlx": 98.0, "ane": 1.3}, "512x768": {"ane": 2.6}}),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    titles = [figures[3].axes[0].get_title(), figures[4].get_suptitle()]
    assert all(title.endswith(f", device {device}") for title in titles)
    labels = [t.get_text() for t in figures[3].axes[0].get_yticklabels()]
    assert labels == ["layers.0", "layers.2"]
    bars = figures[3].axes[0].patches
    assert sum(bar.get_width() for bar in bars) == 2
    assert figures[0].axes[0].lines[1].get_xdata().tolist() == [10, 20]
    assert [t.get_text() for t in figures[0].axes[0].texts[-2:]] == ["3", "2"]
    rows = [t.get_text() for t in figures[1].axes[0].get_yticklabels()]
    assert rows[0] == "outside mlx_ane" and {"gemm_dx", "adam"} <= set(rows)
    (layer,) = checked.layers
    forward = figures[4].axes[0]
    assert forward.get_title() == "forward"
    assert forward.lines[1].get_xdata().tolist() == [layer.forward_tolerance] * 2
    file = tmp_path / "bench.png"
    wide = ane.plot.bench({f"case {i}": {"b": 10.0**i} for i in range(30)}, file)
    assert wide.get_figheight() > 8.0 and wide.axes[0].get_xscale() == "log"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib() -> None:
    done = run_python(
        """
        import sys
        sys.modules["matplotlib.figure"] = None
        import mlx_ane as ane
        try:
            ane.plot.losses({"a": [1.0]})
        except RuntimeError as error:
            print(error)
        """
    )
    assert "pip install 'mlx-ane[plot]'" in done.stdout
