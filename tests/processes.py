"""Code that hangs, crashes or measures a process runs in one of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(
    code: str,
    *arguments: str,
    timeout: float = 120,
    check: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process; its output is shown if it fails.

    Args:
        code (str): The program; `sys.argv[1:]` are ``arguments``.
        timeout (float): Seconds after which it is killed and the test fails.
        check (bool): Whether a status other than 0 fails the test.
        **environment (str): Variables added to the environment.
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=Path(__file__).parent,  # `import cases` works
        env={**os.environ, **environment},
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
