"""Core ML models: a program as the bytes of a `Model`, and packages of them.

>>> from mlx_ane import mil
>>> program = mil.parse('''
... program(1.3) {
...   func main<ios18>(tensor<fp16, [1, 64]> x) {
...     tensor<fp16, [1, 64]> y = relu(x = x)[name = string("y")];
...   } -> (y);
... }''')
>>> mil.spec.version(program)
7
>>> model = mil.spec.write(program, author="me")
>>> mil.spec.read(model).functions[0].opset
'CoreML6'
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_ane import _ext
from mlx_ane.mil.program import Program
from mlx_ane.mil.weights import Writer

__all__ = ["WEIGHTS", "load", "read", "save", "version", "write"]

#: Path of a package's weights, as constants name it.
WEIGHTS = "@model_path/weights/weight.bin"

_DATA = "Data/com.apple.CoreML"


def write(
    program: Program,
    *,
    version: int | None = None,
    weights: Writer | None = None,
    description: str = "",
    author: str = "",
    license: str = "",
    model_version: str = "",
    metadata: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> bytes:
    """Write a program as a Core ML model.

    Inputs and outputs of the functions become multi-arrays of the same names, shapes
    and types (fp16, fp32 or int32); several functions make a multi-function model.

    Args:
        program (Program): The program.
        version (int, optional): Version of the specification: 6 for macOS 12, 7 for 13,
            8 for 14, 9 for 15, 10 for 26; the lowest that holds the program if None.
        weights (weights.Writer, optional): Numeric constants of ten elements or more
            are added to it; they stay in the model if None. Save it as the package's
            weights.
        description (str): What the model does.
        author (str): Who made it.
        license (str): Under which terms.
        model_version (str): Its own version.
        metadata (dict, optional): Further texts by name.
        shapes (dict, optional): For each input with an axis of unknown size, the shapes
            that it may have, the default first.

    Returns:
        bytes: A `Model` message.

    Raises:
        ValueError: The program is no valid MIL, has inputs or outputs of other types,
            or needs a higher version.
    """
    return bytes(
        _ext.mil.model_spec(
            program.handle,
            version=0 if version is None else version,
            description=description,
            author=author,
            license=license,
            model_version=model_version,
            user_defined=list((metadata or {}).items()),
            shapes=[(k, [list(s) for s in v]) for k, v in (shapes or {}).items()],
            weights=None if weights is None else weights.handle,
        )
    )


def version(program: Program) -> int:
    """The lowest version of the specification that holds a program.

    Raises:
        ValueError: The program is no valid MIL.
    """
    return int(_ext.mil.spec_version(program.handle))


def read(model: bytes) -> Program:
    """The program of a Core ML model; constants in weight files stay there.

    Args:
        model (bytes): A `Model` message.

    Raises:
        ValueError: No ML Program, or one with nested blocks, lists or dictionaries.
    """
    return Program(_ext.mil.read_spec(bytes(model)))


def save(path: str | os.PathLike[str], model: bytes, weights: bytes = b"") -> None:
    """Write a model and its weights as a package; an older package is replaced.

    Args:
        path (str): The folder to make, ``*.mlpackage``.
        model (bytes): What `write` returns.
        weights (bytes): Content of the weight file, if the model names one.

    Raises:
        ValueError: Another name, or something else is there.
    """
    folder = Path(path)
    if folder.suffix != ".mlpackage":
        raise ValueError(
            f"[mlx_ane.mil.spec] path is {folder}, need a name ending in .mlpackage."
        )
    if folder.exists() and not (folder / "Manifest.json").is_file():
        raise ValueError(
            f"[mlx_ane.mil.spec] {folder} is there and no package; remove it first."
        )
    items = {"model.mlmodel": "CoreML Model Specification"}
    if weights:
        items["weights"] = "CoreML Model Weights"
    # Identifiers need only differ: the same model gives the same bytes.
    keys = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, name)).upper() for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            keys[name]: {
                "author": "com.apple.CoreML",
                "description": about,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for name, about in items.items()
        },
        "rootModelIdentifier": keys["model.mlmodel"],
    }
    whole = folder.with_name(folder.name + ".part")
    shutil.rmtree(whole, ignore_errors=True)
    data = whole / _DATA
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(model)
    if weights:
        (data / "weights").mkdir()
        (data / "weights" / "weight.bin").write_bytes(weights)
    (whole / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    whole.rename(folder)


def load(path: str | os.PathLike[str]) -> tuple[Program, dict[str, bytes]]:
    """Read a package.

    Args:
        path (str): The folder, ``*.mlpackage``.

    Returns:
        tuple[Program, dict[str, bytes]]: The program, and its weight files by the path
        that constants name: what `mlx_ane.emulated.run` takes.

    Raises:
        OSError: A file is missing.
        ValueError: The model is no ML Program.
    """
    data = Path(path) / _DATA
    program = read((data / "model.mlmodel").read_bytes())
    file = data / "weights" / "weight.bin"
    return program, {WEIGHTS: file.read_bytes()} if file.is_file() else {}
