"""What the command lines of the examples share: counts, and errors in one line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def count(text: str) -> int:
    """A whole number of 1 or more, as a `type` of argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, need 1 or more")
    return value


def run(main: Callable[[], Any], interrupted: str = "nothing is saved") -> None:
    """Calls main(); errors that the user can mend are one line, not a traceback."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        sys.exit(130)
