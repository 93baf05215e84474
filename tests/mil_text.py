"""Writes one-operation MIL programs for the tests of the emulated device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DTYPES = {
    "float16": "fp16",
    "float32": "fp32",
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "bool": "bool",
}


def type_of(array: np.ndarray) -> str:
    """MIL type of an array, for example tensor<fp16, [2, 3]>."""
    shape = ", ".join(map(str, array.shape))
    return f"tensor<{DTYPES[array.dtype.name]}, [{shape}]>"


def literal(value: Any) -> tuple[str, str]:
    """MIL type and text of a constant: str, bool, int, float, list or array."""
    if isinstance(value, str):
        return "string", f'string("{value}")'
    if isinstance(value, bool):
        return "bool", f"bool({str(value).lower()})"
    if isinstance(value, int):
        return "int32", f"int32({value})"
    if isinstance(value, float):
        return "fp16", f"fp16({value!r})"
    if isinstance(value, np.generic) and value.ndim == 0:
        dtype = DTYPES[value.dtype.name]
        return dtype, f"{dtype}({value.item()!r})"
    array = np.asarray(value)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    words = [
        str(v).lower() if array.dtype == bool else repr(v)
        for v in array.reshape(-1).tolist()
    ]
    return type_of(array), f"{type_of(array)}([{', '.join(words)}])"


def program(
    op: str,
    inputs: Mapping[str, np.ndarray],
    arguments: Mapping[str, Any],
    outputs: Sequence[np.ndarray],
    operands: Mapping[str, Any] | None = None,
) -> str:
    """A function that applies `op` once.

    `inputs` are the function's; each is passed as the argument of its name unless
    `operands` says otherwise (argument -> name, or a list of names for a tuple).
    `arguments` become named constants. Outputs are y0, y1, ... of these types.
    """
    lines = []
    passed = dict(operands) if operands is not None else {name: name for name in inputs}
    for name, value in arguments.items():
        kind, text = literal(value)
        lines.append(f'{kind} c_{name} = const()[name=string("c_{name}"), val={text}];')
        passed[name] = f"c_{name}"
    words = [
        f"{name}=({', '.join(value)})" if isinstance(value, list) else f"{name}={value}"
        for name, value in passed.items()
    ]
    results = ", ".join(f"{type_of(y)} y{i}" for i, y in enumerate(outputs))
    lines.append(f'{results} = {op}({", ".join(words)})[name=string("op")];')
    parameters = ", ".join(f"{type_of(x)} {name}" for name, x in inputs.items())
    names = ", ".join(f"y{i}" for i in range(len(outputs)))
    body = "\n    ".join(lines)
    return (
        "program(1.3)\n[buildInfo = dict<string, string>({})]\n{\n"
        f"  func main<ios18>({parameters}) {{\n    {body}\n  }} -> ({names});\n}}\n"
    )
