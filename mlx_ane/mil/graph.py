"""Draw a MIL program as a Graphviz graph."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from mlx_ane.mil.program import Blob, Constant, Function, Operation, Program, Value

__all__ = ["dot", "draw"]


def dot(program: Program) -> str:
    """Describe a program in Graphviz's language.

    Inputs and outputs are ellipses, operations boxes, weights from files notes; named
    constants such as axes are left out. Edges carry element types and shapes.

    Args:
        program (Program): A parsed program.

    Returns:
        str: A `digraph` with one cluster for each function.
    """
    lines = ["digraph mil {", '  node [fontname="Helvetica", fontsize=10];']
    lines.append('  edge [fontname="Helvetica", fontsize=8];')
    for index, function in enumerate(program.functions):
        lines.append(f"  subgraph cluster_{index} {{")
        lines.append(f"    label={_quoted(f'{function.name} <{function.opset}>')};")
        lines.extend(f"    {line}" for line in _Drawing(function, index).lines())
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def draw(program: Program, path: str | os.PathLike[str]) -> None:
    """Write a drawing; the end of `path` says which: `.dot` or `.svg`.

    Raises:
        ValueError: Another ending.
        RuntimeError: `.svg` without Graphviz's program `dot`, or it failed.
    """
    name = os.fspath(path)
    if name.endswith(".dot"):
        with open(name, "w", encoding="utf-8") as file:
            file.write(dot(program))
        return
    if not name.endswith(".svg"):
        raise ValueError(f"[mlx_ane.mil.graph] path is {name!r}, need .dot or .svg.")
    tool = shutil.which("dot")
    if tool is None:
        raise RuntimeError(
            "[mlx_ane.mil.graph] Graphviz's program dot is not installed; install it, "
            "or write a .dot file."
        )
    done = subprocess.run(
        [tool, "-Tsvg", "-o", name],
        input=dot(program),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"[mlx_ane.mil.graph] dot failed: {done.stderr.strip()}")


class _Drawing:
    """Nodes and edges of one function. Names may be used again after a definition."""

    def __init__(self, function: Function, index: int) -> None:
        self.function = function
        self.prefix = f"f{index}_"
        #: Node and value behind each name; small constants have no node.
        self.sources: dict[str, tuple[str, Value]] = {}

    def lines(self) -> Iterator[str]:
        for i, value in enumerate(self.function.inputs):
            node = f"{self.prefix}in{i}"
            self.sources[value.name] = (node, value)
            yield f"{node} [shape=ellipse, label={_quoted(value.name)}];"
        for i, op in enumerate(self.function.operations):
            yield from self.operation(op, f"{self.prefix}op{i}")
        for i, name in enumerate(self.function.outputs):
            node = f"{self.prefix}out{i}"
            yield f"{node} [shape=ellipse, style=bold, label={_quoted(name)}];"
            yield from self.edge(name, node, "")

    def operation(self, op: Operation, node: str) -> Iterator[str]:
        if op.op == "const" and not isinstance(op.attributes["val"].value, Blob):
            return
        shape = "note" if op.op.startswith("const") else "box"
        names = ", ".join(value.name for value in op.outputs)
        label = _quoted(f"{op.op}\n{names}")
        yield f"{node} [shape={shape}, label={label}];"
        for key, argument in [*op.inputs.items(), *op.attributes.items()]:
            yield from self.argument(argument, node, key)
        for value in op.outputs:
            self.sources[value.name] = (node, value)

    def argument(self, argument: object, node: str, key: str) -> Iterator[str]:
        if isinstance(argument, tuple):
            for i, item in enumerate(argument):
                yield from self.argument(item, node, f"{key}[{i}]")
        elif isinstance(argument, str):
            yield from self.edge(argument, node, key)
        elif isinstance(argument, Constant) and isinstance(argument.value, Blob):
            blob = _quoted(f"{node} {key}")
            yield f"{blob} [shape=note, label={_quoted(argument.value.path)}];"
            yield f"{blob} -> {node} [label={_quoted(key)}];"

    def edge(self, name: str, node: str, key: str) -> Iterator[str]:
        if name not in self.sources:
            return
        source, value = self.sources[name]
        shape = ", ".join("?" if size < 0 else str(size) for size in value.shape)
        label = f"{key}\n{value.dtype} [{shape}]".strip()
        yield f"{source} -> {node} [label={_quoted(label)}];"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
