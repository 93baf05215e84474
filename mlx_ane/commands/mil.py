"""mlx-ane mil: read, check, run and draw a MIL program."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_ane import emulated, mil
from mlx_ane._console import to_json
from mlx_ane.mil import graph

HELP = "check a MIL program against an engine's limits, run it, draw it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane mil`."""
    parser.add_argument("file", help="MIL text, or a folder with a model.mil")
    parser.add_argument(
        "--check",
        metavar="CHIP",
        help="report what this engine refuses: M1 to M6 or h13 to h18",
    )
    parser.add_argument("--macos", default="26", help="version for --check (26)")
    parser.add_argument(
        "--allow",
        metavar="RULE",
        action="append",
        default=[],
        help='leave out a rule of --check, or "disputed" for all disputed ones',
    )
    parser.add_argument(
        "--run", action="store_true", help="run every function on the emulated engine"
    )
    parser.add_argument(
        "--inputs",
        choices=("random", "zeros"),
        default="random",
        help="inputs of --run: normally distributed with seed 0, or zeros",
    )
    parser.add_argument(
        "--weights", metavar="DIR", help="folder of @model_path (that of the file)"
    )
    parser.add_argument("--graph", metavar="OUT", help="draw it as .svg or .dot")
    parser.add_argument(
        "--text",
        choices=("ios16", "ios18"),
        help="print it in this dialect, and everything else to stderr",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what was asked for; 1 if the check found an error."""
    path = pathlib.Path(args.file)
    path = path / "model.mil" if path.is_dir() else path
    text = path.read_bytes()
    try:
        program = mil.parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    report: dict[str, Any] = {"file": str(path), "functions": _summary(program)}
    passed = True
    if args.graph:
        graph.draw(program, args.graph)
        report["graph"] = args.graph
    if args.check:
        found = mil.check(program, args.check, args.macos, allow=args.allow)
        report["findings"] = [vars(finding) for finding in found]
        passed = not any(finding.severity == "error" for finding in found)
    if args.run:
        folder = pathlib.Path(args.weights) if args.weights else path.parent
        report["outputs"] = _run(program, text, folder, args.inputs)
    if args.text:
        report["text"] = program.text(args.text)
    if args.json:
        print(to_json(report))
    elif args.text:
        print(_lines(report, args), file=sys.stderr)
        print(report["text"], end="")
    else:
        print(_lines(report, args))
    return 0 if passed else 1


def _summary(program: mil.Program) -> list[dict[str, Any]]:
    return [
        {
            "name": function.name,
            "opset": function.opset,
            "inputs": {v.name: _type(v.dtype, v.shape) for v in function.inputs},
            "outputs": function.outputs,
            "operations": sum(op.op != "const" for op in function.operations),
            "constants": sum(op.op == "const" for op in function.operations),
        }
        for function in program.functions
    ]


def _type(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"


def _run(
    program: mil.Program, text: bytes, folder: pathlib.Path, kind: str
) -> dict[str, dict[str, Any]]:
    """Shape and range of every output, by function."""
    compiled = emulated.Program(text, _weights(program, folder), limits="off")
    results: dict[str, dict[str, Any]] = {}
    for function in program.functions:
        generator = np.random.default_rng(0)
        inputs = {
            value.name: _input(value, kind, generator) for value in function.inputs
        }
        outputs = compiled(inputs, function=function.name)
        results[function.name] = {name: _range(y) for name, y in outputs.items()}
    return results


def _weights(program: mil.Program, folder: pathlib.Path) -> dict[str, bytes]:
    """Content of the weight files that a program names; the parser bars `..`."""
    files: dict[str, bytes] = {}
    for path in sorted(_paths(program)):
        file = folder / path.removeprefix("@model_path/")
        if not file.is_file():
            raise ValueError(
                f"[mlx-ane mil] the weight file {file} of {path} is missing; give its "
                "folder with --weights."
            )
        files[path] = file.read_bytes()
    return files


def _paths(program: mil.Program) -> set[str]:
    return {
        constant.value.path
        for function in program.functions
        for op in function.operations
        for constant in [*op.attributes.values(), *op.inputs.values()]
        if isinstance(constant, mil.Constant) and isinstance(constant.value, mil.Blob)
    }


def _input(
    value: mil.Value, kind: str, generator: np.random.Generator
) -> npt.NDArray[Any]:
    if any(size < 0 for size in value.shape):
        raise ValueError(
            f"[mlx-ane mil] the input {value.name} is "
            f"{_type(value.dtype, value.shape)}, need known sizes to run it."
        )
    if kind == "zeros":
        return np.zeros(value.shape)
    if value.dtype.startswith(("fp", "bf")):
        return generator.standard_normal(value.shape)
    # Small enough for every integer type, and for bool.
    return generator.integers(0, 2, value.shape)


def _range(array: npt.NDArray[Any]) -> dict[str, Any]:
    wide = array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    return {
        "type": _type(str(array.dtype), array.shape),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "nonfinite": int(wide.size - finite.size),
    }


def _lines(report: dict[str, Any], args: argparse.Namespace) -> str:
    """The report for a person."""
    lines = []
    for f in report["functions"]:
        inputs = ", ".join(f"{name} {kind}" for name, kind in f["inputs"].items())
        lines.append(
            f"{f['name']} <{f['opset']}>: {f['operations']} operations, "
            f"{f['constants']} constants; {inputs or 'no inputs'} -> "
            f"{', '.join(f['outputs'])}"
        )
    for finding in report.get("findings", []):
        lines.append(str(mil.Finding(**finding)))
    if report.get("findings") == []:
        lines.append(f"{args.check}: nothing found")
    for name, outputs in report.get("outputs", {}).items():
        for output, r in outputs.items():
            ends = "no finite value" if r["min"] is None else f"{r['min']:.6g} to "
            ends += "" if r["min"] is None else f"{r['max']:.6g}"
            extra = f", {r['nonfinite']} non-finite" if r["nonfinite"] else ""
            lines.append(f"{name}: {output} {r['type']}: {ends}{extra}")
    if "graph" in report:
        lines.append(f"drawn in {report['graph']}")
    return "\n".join(lines)
