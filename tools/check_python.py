"""Says in one sentence what this Python lacks to build mlx_ane, if anything."""

import importlib.util
import os
import sys
import sysconfig

header = os.path.join(sysconfig.get_paths()["include"], "Python.h")

if sys.version_info < (3, 10):  # noqa: UP036 (an old one may run this)
    sys.exit("Python is older than 3.10; name a newer one: make PYTHON=python3.12")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("Python has no ensurepip; on Debian: sudo apt install python3-venv")
if not os.path.exists(header):
    sys.exit(header + " is missing; on Debian: sudo apt install python3-dev")
