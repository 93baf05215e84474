"""The command `mlx-ane NAME ...`: each module of mlx_ane.commands is a NAME."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from mlx_ane import __version__, commands
from mlx_ane._console import closest, reason


def names() -> list[str]:
    """Names of the commands that this version has."""
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that the user can mend are one line.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        int: The exit status: 0, 1 for a failure, 2 for wrong usage, 130 after
        Ctrl-C, 141 if the reader of the output has gone.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()  # here, where the error can still be caught
    except BrokenPipeError:
        # Nobody reads on; the interpreter's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in names():
        return _run(name, arguments[1:])
    parser = _Parser(
        prog="mlx-ane",
        description="MLX models on Apple's Neural Engine.",
        epilog="\n".join(f"  {n:<8} {_command(n).HELP}" for n in names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=names(), metavar="command")
    parser.parse_args(arguments)
    return 2


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag where one is unknown."""

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        args, rest = self.parse_known_args(arguments, namespace)
        if rest:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = closest(rest[0].split("=")[0], known)
            hint = f"; did you mean {near}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
        return args


def _command(name: str) -> Any:
    return importlib.import_module(f"mlx_ane.commands.{name}")


def _run(name: str, arguments: list[str]) -> int:
    try:
        command = _command(name)
        parser = _Parser(prog=f"mlx-ane {name}", description=command.HELP)
        command.add_arguments(parser)
        return int(command.run(parser.parse_args(arguments)))
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        print(f"mlx-ane {name}: {_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        saved = getattr(error, "saved", "nothing is saved")
        print(f"mlx-ane {name}: interrupted; {saved}", file=sys.stderr)
        flags = getattr(error, "flags", None)
        if flags is not None:
            again = shlex.join(["mlx-ane", name, *arguments, *flags])
            print(f"to go on: {again}", file=sys.stderr)
        return 130


def _line(error: Exception) -> str:
    """One line; errors of the system name the file."""
    return reason(error) + "." * (not str(error).endswith("?"))
