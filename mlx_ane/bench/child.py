"""One side of the benchmark in a process of its own; started by measure.py.

Reads one JSON request a line and answers each with one line: ``prepare`` makes a task
and answers with the file of its result, ``run`` answers with seconds.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def package() -> str:
    """This folder as a package of its own: mlx_ane would load MLX for every side."""
    sides = types.ModuleType("sides")
    sides.__path__ = [str(Path(__file__).parent)]
    sys.modules["sides"] = sides
    return "sides"


def main(name: str, folder: str) -> None:
    """Serve requests until the input ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = importlib.import_module(f"{package()}.side_{name}")
    tasks: dict[str, Any] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "info":
            return side.info()
        key = request["task"]
        if request["do"] == "prepare":
            tasks[key] = side.task(request["part"], request["spec"])
            path = Path(folder) / f"{name}-{os.getpid()}-{len(tasks)}.npy"
            np.save(path, tasks[key].result())
            return {"result": str(path)}
        if request["do"] == "forget":
            del tasks[key]
            gc.collect()
            return {}
        return tasks[key].run()

    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the parent reports it with the side's name
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
