"""The command `mlx-ane NAME ...`: each module of mlx_ane.commands is a NAME."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from mlx_ane import __version__, commands


def names() -> list[str]:
    """Names of the commands that this version has."""
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors that the user can mend are one line.

    Args:
        argv (Sequence[str], optional): Arguments; those of the process if None.

    Returns:
        int: The exit status: 0, 1 for a failure, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in names():
        return _run(name, arguments[1:])
    parser = argparse.ArgumentParser(
        prog="mlx-ane",
        description="MLX models on Apple's Neural Engine.",
        epilog="\n".join(f"  {n:<8} {_command(n).HELP}" for n in names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=names(), metavar="command")
    parser.parse_args(arguments)
    return 2


def _command(name: str) -> Any:
    return importlib.import_module(f"mlx_ane.commands.{name}")


def _run(name: str, arguments: list[str]) -> int:
    command = _command(name)
    parser = argparse.ArgumentParser(prog=f"mlx-ane {name}", description=command.HELP)
    command.add_arguments(parser)
    try:
        return int(command.run(parser.parse_args(arguments)))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"mlx-ane {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
