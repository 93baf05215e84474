"""What the command lines of the examples share: numbers, and errors in one line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def count(text: str) -> int:
    """A whole number of 1 or more, as a `type` of argparse."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number of 0 or more, as a `type` of argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if not least <= value < 2**63:
        raise argparse.ArgumentTypeError(f"got {value}, need {least} or more")
    return value


def run(main: Callable[[], Any], interrupted: Callable[[], str] | None = None) -> None:
    """Calls main(); what the user can mend is one line, not a traceback.

    Args:
        main (Callable): The program.
        interrupted (Callable, optional): Says after Ctrl-C what is saved.
    """
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{_program()}: {error}")
    except KeyboardInterrupt:
        saved = interrupted() if interrupted else "nothing is saved"
        print(f"\n{_program()}: interrupted; {saved}", file=sys.stderr)
        sys.exit(130)


def _program() -> str:
    return Path(sys.argv[0]).name


def _while_importing(kind: Any, error: BaseException, trace: Any) -> None:
    """One line where an extra is missing, or for Ctrl-C before main()."""
    if isinstance(error, ModuleNotFoundError):
        print(
            f"{_program()}: {error.name} is not installed; run: "
            "pip install 'mlx-ane[demo]'",
            file=sys.stderr,
        )
    elif isinstance(error, KeyboardInterrupt):
        print(f"\n{_program()}: interrupted; nothing is saved", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _while_importing
