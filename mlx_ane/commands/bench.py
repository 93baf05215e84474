"""mlx-ane bench: is it right, and how fast, against the machine and against others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mlx_ane import bench
from mlx_ane.bench.experiment import experiment
from mlx_ane.bench.measure import Sides

HELP = "measure the host kernels and a training step, against others"

PEERS = ("torch", "mlx", "mkl", "numpy")


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
        "--device", default="emulated", help="device of the experiment's forward"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="F", help="write a plot (PNG, PDF, SVG)")
    parser.add_argument("--markdown", metavar="F", help="write the tables")
    parser.add_argument(
        "--torch-python", metavar="F", help="a Python that has torch, if not this one"
    )
    parser.add_argument("--mkl", metavar="F", help="libmkl_rt, if not found")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if an answer of ours is wrong."""
    peers = tuple(p for p in args.against.split(",") if p)
    unknown = sorted(set(peers) - set(PEERS))
    if unknown or args.rounds < 1 or args.threads < 1:
        raise ValueError(
            f"[mlx_ane.bench] got {unknown or 'rounds or threads below 1'}, need "
            f"--against among {', '.join(PEERS)} and positive counts."
        )
    given = {"torch": args.torch_python, "mkl": args.mkl}
    sides = Sides(args.threads, {k: v for k, v in given.items() if v})
    report = bench.Report()
    parts = bench.PARTS if args.part == "all" else (args.part,)
    try:
        for part in parts:
            cases = [
                case
                for case in bench.cases(part, peers, args.small)
                if any(text in case.name for text in args.only.split(","))
            ]
            for row in bench.measure(cases, sides, args.rounds):
                report.rows.append(row)
                print(f"{row.part}: {row.case}: {row.variant}", file=sys.stderr)
        if "step" in parts:
            rounds = min(args.rounds, 5)
            report.experiment = experiment(sides, rounds, args.small, args.device)
    except KeyboardInterrupt:
        # What was found in an hour is not thrown away.
        sides.info["interrupted"] = "the last part is incomplete"
    finally:
        sides.close()
    report.info, report.absent = sides.info, sides.absent
    return _write(report, args)


def _write(report: bench.Report, args: argparse.Namespace) -> int:
    print(json.dumps(report.json(), indent=2) if args.json else report.text())
    if args.markdown:
        Path(args.markdown).write_text(report.markdown())
    if args.plot:
        report.plot(args.plot)
    wrong = [row for row in report.rows if not row.correct and not row.problem]
    return 1 if wrong else 0
