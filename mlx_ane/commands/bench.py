"""mlx-ane bench: is it right, and how fast, against the machine and against others."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from mlx_ane import _device, bench
from mlx_ane._console import Interrupted, ending, to_json, why_unwritable
from mlx_ane.bench.cases import Case
from mlx_ane.bench.experiment import experiment
from mlx_ane.bench.measure import Sides, why_absent

HELP = "measure the host kernels and a training step, against others"

PEERS = ("torch", "mlx", "mkl", "numpy")
#: Endings of a plot's file.
PLOTS = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane bench`."""
    parser.add_argument("part", nargs="?", default="all", choices=(*bench.PARTS, "all"))
    parser.add_argument(
        "--against",
        default="mlx,numpy",
        help="other libraries, by comma: " + ",".join(PEERS),
    )
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of every side")
    parser.add_argument(
        "--only", default="", help="cases whose name has one of these texts, by comma"
    )
    parser.add_argument("--small", action="store_true", help="sizes that take seconds")
    parser.add_argument(
        "--device",
        default="emulated",
        help="of the forward in the step after",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="F", help="write a plot (PNG, PDF, SVG)")
    parser.add_argument("--markdown", metavar="F", help="write the tables")
    parser.add_argument(
        "--torch-python", metavar="F", help="a Python that has torch, if not this one"
    )
    parser.add_argument("--mkl", metavar="F", help="libmkl_rt, if not found")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if an answer of ours is wrong, 130 after Ctrl-C."""
    chosen = _chosen(args)
    _check_outputs(args)
    device = _device.resolve(args.device, "bench")
    given = {"torch": args.torch_python, "mkl": args.mkl}
    sides = Sides(args.threads, {k: v for k, v in given.items() if v})
    report = bench.Report()
    interrupted = False
    try:
        for cases in chosen.values():
            for row in bench.measure(cases, sides, args.rounds):
                report.rows.append(row)
                print(f"{row.part}: {row.case}: {row.variant}", file=sys.stderr)
        if "step" in chosen:
            rounds = min(args.rounds, 5)
            report.experiment = experiment(sides, rounds, args.small, device)
    except KeyboardInterrupt:
        # What was found in an hour is not thrown away.
        sides.info["interrupted"] = "the last case has fewer rounds, others none"
        interrupted = True
    finally:
        sides.close()
    report.info, report.absent = sides.info, sides.absent
    status = _write(report, args)
    if interrupted:
        raise Interrupted("what was measured is above")
    return status


def _chosen(args: argparse.Namespace) -> dict[str, list[Case]]:
    """The cases to measure by part, once all that was asked for is known to exist."""
    for flag in ("rounds", "threads"):
        if getattr(args, flag) < 1:
            raise ValueError(
                f"[mlx_ane.bench] --{flag} is {getattr(args, flag)}, need 1 or more."
            )
    peers = tuple(p.strip() for p in args.against.split(",") if p.strip())
    for peer in peers:
        if peer not in PEERS:
            raise ValueError(
                f"[mlx_ane.bench] --against has {peer!r}, need --against among "
                f"{', '.join(PEERS)}{ending(peer, PEERS)}"
            )
        why = why_absent(peer, args.torch_python, args.mkl)
        if why:
            raise ValueError(
                f"[mlx_ane.bench] --against has {peer!r}, but {why}; leave it out, or "
                f"install it."
            )
    only = [text.strip() for text in args.only.split(",") if text.strip()] or [""]
    parts = bench.PARTS if args.part == "all" else (args.part,)
    everything = {part: list(bench.cases(part, peers, args.small)) for part in parts}
    names = [case.name for cases in everything.values() for case in cases]
    for text in only:
        if not any(text in name for name in names):
            raise ValueError(
                f"[mlx_ane.bench] --only has {text!r}, which is in no case of "
                f"{args.part}, need part of a name such as {names[0]!r}"
                f"{ending(text, names)}"
            )
    found = {
        part: [case for case in cases if any(text in case.name for text in only)]
        for part, cases in everything.items()
    }
    return {part: cases for part, cases in found.items() if cases}


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse files that could not be written when the measuring is done."""
    for flag in ("plot", "markdown"):
        path = getattr(args, flag)
        why = why_unwritable(path) if path else None
        if why:
            raise ValueError(f"[mlx_ane.bench] --{flag} is {path!r}, which {why}.")
    if args.plot and Path(args.plot).suffix.lower() not in PLOTS:
        raise ValueError(
            f"[mlx_ane.bench] --plot is {args.plot!r}, need a file that ends with "
            f"{', '.join(PLOTS)}."
        )
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError(
            "[mlx_ane.bench] --plot needs matplotlib; run: pip install 'mlx-ane[plot]'"
        )


def _write(report: bench.Report, args: argparse.Namespace) -> int:
    print(to_json(report.json()) if args.json else report.text())
    if args.markdown:
        Path(args.markdown).write_text(report.markdown())
    if args.plot:
        report.plot(args.plot)
    wrong = [row for row in report.rows if not row.correct and not row.problem]
    return 1 if wrong else 0
