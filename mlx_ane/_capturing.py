"""Whether this thread is capturing a function; our ops then emit plain MLX ops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_this_thread = threading.local()


def capturing() -> bool:
    """True inside :func:`mlx_ane.capture.capture`, in the thread that runs it."""
    return getattr(_this_thread, "capturing", False)


@contextmanager
def capture_mode() -> Iterator[None]:
    """Our primitives cannot be exported: inside, their plain forms stand in."""
    _this_thread.capturing = True
    try:
        yield
    finally:
        _this_thread.capturing = False
