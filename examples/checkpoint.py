"""Checkpoints in one safetensors file that is whole even if the process is killed:
written aside, flushed to the disk, then renamed over the old one."""

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten


def save(path: Path, arrays: Any, facts: dict[str, Any]) -> None:
    """Replaces the checkpoint at `path`.

    Args:
        path (Path): Ends in ``.safetensors``.
        arrays (Any): Tree of arrays, for example ``{"model": model.parameters()}``.
        facts (dict): Anything that JSON can hold.
    """
    aside = path.with_name(f".{path.name}.safetensors")
    mx.save_safetensors(
        str(aside),
        dict(tree_flatten(arrays)),
        {"format": "mlx", "facts": json.dumps(facts)},
    )
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)  # the rename itself


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """Returns the arrays and facts given to save().

    Raises:
        ValueError: The file is no checkpoint, or is damaged.
    """
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)
        mx.eval(arrays)
        return tree_unflatten(list(arrays.items())), json.loads(metadata["facts"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise ValueError(
            f"[checkpoint.load] {path} is no whole checkpoint of this program "
            f"({error}), delete it or name another folder."
        ) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
