"""What the commands share: JSON without NaN, one-line messages, checks of paths."""

from __future__ import annotations

import difflib
import json
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Columns of what is printed, on a terminal or not.
WIDTH = 80


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with what is saved and the flags that go on from there.

    Args:
        saved (str): The end of a sentence that begins with "interrupted".
        flags (list[str], optional): Added to the command to go on.
    """

    def __init__(self, saved: str, flags: list[str] | None = None) -> None:
        super().__init__(saved)
        self.saved, self.flags = saved, flags


def to_json(value: Any) -> str:
    """JSON text of plain values and arrays; NaN and infinities become null.

    Args:
        value (Any): Mappings, sequences, numbers, strings, or arrays of numbers.
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return _finite(value.tolist()) if hasattr(value, "tolist") else value


def closest(name: object, names: Iterable[str]) -> str | None:
    """The known name that `name` may have meant."""

    def plain(text: object) -> str:
        return str(text).strip().lower().replace("-", "_")

    known = {plain(n): n for n in names}
    found = difflib.get_close_matches(plain(name), known, n=1)
    return known[found[0]] if found else None


def ending(name: object, names: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: asks for the nearest, or a stop."""
    found = closest(name, names)
    return f"; did you mean {found!r}?" if found else "."


def reason(error: BaseException) -> str:
    """What an exception says, in one line and without a final stop."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, RuntimeError, OSError)) and text:
        return text
    return f"{type(error).__name__} {text}".strip()


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Errors of another library, in which `what` failed, become one sentence."""
    try:
        yield
    except Exception as error:
        if str(error).startswith("[mlx_ane"):
            raise
        raise RuntimeError(f"{what}: {reason(error)}.") from error


def why_unwritable(path: str | Path, folder: bool = False) -> str | None:
    """Why a file, or a folder that is made if need be, cannot be written to."""
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        return "is a file, need a folder" if folder else "is a folder, need a file"
    place = path if path.exists() else path.parent
    while folder and not place.exists():
        place = place.parent
    if not place.exists():
        return f"is in {place}, which does not exist"
    if place != path and not place.is_dir():
        return f"is in {place}, which is no folder"
    return None if os.access(place, os.W_OK) else "cannot be written to"


def wrapped(text: str) -> list[str]:
    """Lines of at most `WIDTH` columns; all but the first are indented further."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,  # paths
        break_on_hyphens=False,
    )


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns under a rule, numbers to the right; the first row is the head."""
    rows = list(rows)
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = [
        "  ".join(
            cell.rjust(w) if r else cell.ljust(w)
            for cell, w, r in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "").isdecimal()


def some(paths: Sequence[str], most: int = 26) -> str:
    """A short name for the layers at these paths: the path of one, or what they share.

    Layers that LoRA wraps have the wrapper's name, and the indices of lists are "*".
    """
    own = [path.removesuffix(".linear") for path in paths]
    count = f" x {len(own)}" if len(own) > 1 else ""
    name = own[0] if own else ""
    if count:
        name = ", ".join(dict.fromkeys(map(_kind, own)))
    room = most - len(count)
    if len(name) > room:
        # Of a path its end tells more, of several names the first.
        cut = room - 3
        name = f"{name[:cut]}..." if count else f"...{name[-cut:]}"
    return name + count


def _kind(path: str) -> str:
    parts = ["*" if part.isdecimal() else part for part in path.split(".")]
    last = max((i for i, part in enumerate(parts) if part != "*"), default=0)
    return ".".join(parts[last:])
