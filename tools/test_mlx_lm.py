"""Runs mlx-lm's own tests with every default layer converted; writes docs/mlx_lm.md.

    python tools/test_mlx_lm.py CHECKOUT                      # cpu and emulated
    python tools/test_mlx_lm.py CHECKOUT --device cpu --files test_models.py

CHECKOUT is a clone of ml-explore/mlx-lm at the version that pip installed. The tests
come from it, mlx-lm from the installed wheel. Each file runs in
plain MLX first: a test may fail with our layers only if it fails without them too.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mlx_lm.md"
#: What builds layers; the others test servers, parsers and tokenizers.
FILES = [
    "test_tuner_*.py",
    "test_finetune.py",
    "test_models.py",
    "test_losses.py",
    "test_prompt_cache.py",
    "test_utils.py",
]
#: Why a test (file::class::test) fails in plain MLX; others show their own message.
REASONS = {
    "test_losses.py::*": "its kernels are Metal's",
    "test_models.py::*::test_bitnet": "its kernel is Metal's",
    "test_models.py::*::test_gated_delta*": "its kernel is Metal's",
    "test_prompt_cache.py::*": "it loads a model from the hub, and runs offline",
    "test_utils.py::*": "it loads a model from the hub, and runs offline",
}


NEWER = "The two versions differ, so a few tests expect another mlx-lm."


@dataclass
class Outcome:
    """One file with one kind of layers."""

    tests: dict[str, str] = field(default_factory=dict)  # Class::test to outcome
    messages: dict[str, str] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def named(self, outcome: str) -> set[str]:
        return {name for name, found in self.tests.items() if found == outcome}


def run(file: Path, device: str | None, timeout: float) -> Outcome:
    """Runs a test file in a process of its own; None is plain MLX."""
    # HF_HUB_OFFLINE: a test that needs the network fails at once.
    path = os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    with tempfile.TemporaryDirectory() as folder:  # not the checkout: see `-m`
        found = Path(folder) / "outcomes.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "mlx_lm_plugin"]
        command += ["--outcomes", str(found), "-p", "no:cacheprovider", str(file)]
        command += ["--convert", device] if device else []
        end = "it ended the process"
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            end = f"stopped after {timeout:.0f} s"
        return read(found.read_text() if found.exists() else "", end)


def read(lines: str, end: str) -> Outcome:
    """What the plugin wrote; a test that began and has no outcome failed by `end`."""
    outcome = Outcome()
    for line in lines.splitlines():
        facts = json.loads(line)
        if "counters" in facts:
            outcome.counters = facts["counters"]
            continue
        name = facts["test"].partition("::")[2] or "collection"
        worse = outcome.tests.get(name) == "failed" and facts["outcome"] != "failed"
        if not worse:  # a failed subtest stays, whatever its test says
            outcome.tests[name] = facts["outcome"]
            outcome.messages[name] = facts.get("reason", "")
    for name in outcome.named("started"):
        outcome.tests[name], outcome.messages[name] = "failed", end
    if not outcome.tests:
        outcome.tests["collection"], outcome.messages["collection"] = "failed", end
    return outcome


def differences(plain: Outcome, ours: Outcome) -> dict[str, str]:
    """Tests that pass in plain MLX only, with the message of ours."""
    lost = plain.named("passed") - ours.named("passed")
    return {name: ours.messages.get(name, "not run") for name in sorted(lost)}


def reason(file: str, name: str, message: str) -> str:
    for pattern, known in REASONS.items():
        if fnmatch.fnmatch(f"{file}::{name}", pattern):
            return known
    return message.replace("|", "/")[:100]


def version(checkout: Path) -> str:
    """The version that the checkout gives itself, without importing it."""
    tree = ast.parse((checkout / "mlx_lm" / "_version.py").read_text())
    (value,) = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    return str(ast.literal_eval(value))


def page(
    plain: dict[str, Outcome],
    ours: dict[str, dict[str, Outcome]],
    checkout: str,
) -> str:
    """The Markdown page: outcomes by file, then what fails and why."""
    installed = importlib.metadata.version("mlx-lm")
    devices = list(ours)
    lines = [
        "# mlx-lm's own tests",
        "",
        f"The tests of an mlx-lm checkout that calls itself {checkout}, run against",
        f"the installed mlx-lm {installed} with `nn.Linear`, `nn.Embedding` and their",
        "quantised kinds replaced by ours before anything is imported. Written by",
        "`python tools/test_mlx_lm.py CHECKOUT`. Device calls have no minimum of rows",
        "here, so that the small models of the tests reach the device.",
        *([NEWER] if checkout != installed else []),
        "",
        f"| file | plain MLX passes | {' | '.join(f'{d} passes' for d in devices)} "
        "| differs | calls of our layers |",
        "|---" * (4 + len(devices)) + "|",
    ]
    for file, outcome in plain.items():
        runs = [ours[d][file] for d in devices]
        of = len(outcome.tests) - len(outcome.named("skipped"))
        lost = sum(len(differences(outcome, r)) for r in runs)
        passed = [f"{len(o.named('passed'))} of {of}" for o in (outcome, *runs)]
        calls = max(r.counters.get("linear_calls", 0) for r in runs)
        lines.append(f"| {file} | {' | '.join(passed)} | {lost or 'none'} | {calls} |")
    lines += ["", "Tests that fail in plain MLX on this machine, and so with ours:", ""]
    lines += ["| file | tests | why |", "|---|---|---|"]
    for file, outcome in plain.items():
        by_reason: dict[str, list[str]] = {}
        for name in sorted(outcome.named("failed")):
            why = reason(file, name, outcome.messages.get(name, ""))
            by_reason.setdefault(why, []).append(name.split("::")[-1])
        for why, names in by_reason.items():
            shown = ", ".join(names) if len(names) < 5 else f"{len(names)} tests"
            lines.append(f"| {file} | {shown} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="of mlx-lm's pinned version")
    parser.add_argument("--device", nargs="+", default=["cpu", "emulated"])
    parser.add_argument("--files", nargs="+", default=FILES, metavar="PATTERN")
    parser.add_argument("--timeout", type=float, default=300, help="seconds a file")
    parser.add_argument("--markdown", type=Path, help="where to write the page")
    args = parser.parse_args()
    files = sorted(
        {f for p in args.files for f in (args.checkout / "tests").resolve().glob(p)}
    )
    if not files:
        parser.error(f"{args.checkout} has no tests named {' or '.join(args.files)}")
    plain: dict[str, Outcome] = {}
    ours: dict[str, dict[str, Outcome]] = {device: {} for device in args.device}
    lost = 0
    for file in files:
        plain[file.name] = run(file, None, args.timeout)
        for device in args.device:
            found = ours[device][file.name] = run(file, device, args.timeout)
            for name, message in differences(plain[file.name], found).items():
                print(f"{device}: {file.name}::{name} passes in plain MLX: {message}")
                lost += 1
        print(f"{file.name}: {len(plain[file.name].tests)} tests", flush=True)
    content = page(plain, ours, version(args.checkout))
    print(content)
    if args.markdown or args.files == FILES:
        (args.markdown or PAGE).write_text(content)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
