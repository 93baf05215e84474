"""Machines that public reports describe, as deviations of the doubles.

A machine is the words of DOUBLES_MACHINE (tests/doubles/machine.c); the numbers are
those of the reports in docs/apple.md, letters tell two readings of one apart.
"""

from __future__ import annotations

import os
from pathlib import Path

#: What each machine does; `None`: its engine cannot be used, and that is what is said.
MACHINES = {
    "1": "chip=h13g,rank4_pair,refuse=reshape|transpose|slice_by_size,zero_names,"
    "ascending",
    "2": "chip=h13g,refuse=cast",
    "3": "chip=h13g,allow=dialect",
    "4a": "chip=h16g,exact",
    "4b": "chip=h16g,allow=uniform-surfaces",
    "5": "slow_last_axis=30000",
    "6": "single_input",
    "7": "ignores_url",
    "8": "stale_load",
    "9": "missing=_ANEInMemoryModel|_ANEClient,host_buffers",
    "10a": "missing=_ANEClient|Espresso",
    "10b": "missing=_ANEInMemoryModel|Espresso",
    "11a": "flaky_compile",
    "11b": "back_off=15000",
    "12a": "writes_nothing",
    "12b": "overflow_zero",
    "12c": "exact",
    "13a": "row_stride=128,reports_strides",
    "13b": "row_stride=128",
    "14a": "hang=load",
    "14b": "hang=compile",
    "14c": "hang=unload",
    "15": "enforce=compiles",
    "16": "code10=in_memory|client",
    "17": "no_engine",
}

#: Machines without a usable engine, and words of the true sentence.
UNUSABLE = {
    "12a": "not written",
    "14a": "no answer within",
    "14b": "no answer within",
    "17": "no Neural Engine",
}


def environment(*names: str) -> dict[str, str]:
    """The variables that make the doubles these machines at once."""
    words: dict[str, list[str]] = {}
    for name in names:
        for word in MACHINES[name].split(","):
            key, _, value = word.partition("=")
            words.setdefault(key, [])
            words[key] += [v for v in value.split("|") if v and v not in words[key]]
    text = ",".join(f"{k}={'|'.join(v)}" if v else k for k, v in words.items())
    found = {"DOUBLES_MACHINE": text}
    if "Espresso" in words.get("missing", []):
        found["DOUBLES_FRAMEWORKS"] = str(frameworks() / "no_espresso")
    return found


def frameworks() -> Path:
    """The folder of the doubles' frameworks, beside the library they share."""
    maps = Path(f"/proc/{os.getpid()}/maps").read_text().splitlines()
    library = next(line for line in maps if "libmlx_ane_doubles" in line)
    return Path(library.split()[-1]).parent


def contradict(one: str, other: str) -> bool:
    """Two machines that cannot be one: another chip, or nothing left to use."""
    if one.rstrip("abc") == other.rstrip("abc"):
        return True
    first, second = (dict(_pairs(MACHINES[name])) for name in (one, other))
    both = first.keys() & second.keys()
    return any(first[key] != second[key] for key in both - {"missing", "refuse"})


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(k, v) for k, _, v in (word.partition("=") for word in text.split(","))]
