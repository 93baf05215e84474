"""What `mlx-ane lora` says before it trains, and after."""

from __future__ import annotations

import shlex
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import _device
from mlx_ane._console import some, wrapped
from mlx_ane.estimate import milliseconds
from mlx_ane.report import ConversionReport, SkippedLayer

#: Why convert() leaves a layer that --predicate does not match.
PREDICATE = "class_predicate said no"


def say(text: str) -> None:
    """Print in lines of 80 columns."""
    print("\n".join(wrapped(text)), flush=True)


def before(
    model: nn.Module, report: ConversionReport, config: types.SimpleNamespace
) -> None:
    """Where the layers are and why not, and how long a step may take."""
    trained = sum(a.size for _, a in tree_flatten(model.trainable_parameters()))
    trains = f"; {config.fine_tune_type} trains {trained / 1e6:.3g} M parameters"
    chosen = _device.resolve(config.ane["device"], "lora")
    how = _device.auto_choice()[1] if _is_auto(config) else ""
    say(
        f"device {chosen}{f' ({how})' * bool(how)}: {report.placed}"
        + trains * bool(config.train)
    )
    left = _left(report)
    for reason, layers in left.items():
        say(f"not converted: {some([s.path for s in layers])}: {reason}")
    for line in filter(None, (report.why, report.hint)):
        say(line)
    # An estimate is of a model whose layers are all converted.
    if report.estimate is not None and PREDICATE not in left:
        verb = "expect about" if chosen == "ane" else f"an {report.chip} would take"
        seconds = getattr(report.estimate, f"{report.granularity}s")
        shape = " x ".join(map(str, report.estimate.shape))
        say(f"{verb} {milliseconds(seconds)} ms a step of {shape} tokens (an estimate)")


def warning(report: ConversionReport, config: types.SimpleNamespace) -> str | None:
    """Why little is on the device although one was asked for, or None."""
    device = _device.resolve(config.ane["device"], "lora")
    count = sum(c.device == device for c in report.converted)
    left = _left(report)
    if device == "cpu" or count > sum(map(len, left.values())):
        return None
    patterns = config.ane["predicate"]
    if patterns and not report.converted:
        why = (
            f"--predicate {' '.join(patterns)} matches no path, such as "
            f"{report.skipped[0].path if report.skipped else 'none'}"
        )
    else:
        decided = [str(c.decision) for c in report.converted if c.decision]
        reasons = Counter(reason for reason, layers in left.items() for _ in layers)
        reasons += Counter(decided)
        if config.ane["precision"] == "exact":
            why = "precision 'exact' is fp32 on the BLAS"
        else:
            why = reasons.most_common(1)[0][0] if reasons else "the model has no layer"
    of = len(report.converted) + sum(map(len, left.values()))
    found = f"only {count} of {of} layers is" if count else "nothing is"
    return f"{found} on device {device}: {why}"


def after(
    config: types.SimpleNamespace,
    seconds: float,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]],
) -> None:
    """Losses, speed, where the adapters are, and how to try them."""
    words = [f"{config.iters} iterations in {seconds:.3g} s"]
    if train:
        words.append(f"{tokens_per_second(train):.0f} tokens/s")
        words.append(f"training loss {_from_to(train, 'train_loss')}")
    if validation:
        words.append(f"validation loss {_from_to(validation, 'val_loss')}")
    print()
    say(", ".join(words))
    folder = Path(config.adapter_path)
    print(f"adapters: {folder / 'adapters.safetensors'}")
    command = ["mlx_lm.generate", "--model", config.model]
    command += ["--adapter-path", str(folder), "--prompt", "Hello"]
    print(f"try them: {shlex.join(command)}", flush=True)


def tokens_per_second(train: list[dict[str, Any]]) -> float:
    """Over all reports of mlx-lm's trainer, each of which has that of its steps."""
    totals = [0, *(info["trained_tokens"] for info in train)]
    seconds = sum(
        (now - last) / info["tokens_per_second"]
        for last, now, info in zip(totals, totals[1:], train, strict=False)
    )
    return float(totals[-1] / seconds) if seconds else 0.0


def _from_to(reports: list[dict[str, Any]], key: str) -> str:
    losses = [f"{info[key]:.3f}" for info in (reports[0], reports[-1])]
    return " to ".join(dict.fromkeys(losses))


def _left(report: ConversionReport) -> dict[str, list[SkippedLayer]]:
    """Layers that were not converted, by reason; without wrappers of others."""
    found: dict[str, list[SkippedLayer]] = {}
    for layer in report.skipped:
        if layer.is_layer:
            found.setdefault(layer.reason, []).append(layer)
    return found


def _is_auto(config: types.SimpleNamespace) -> bool:
    return (config.ane["device"] or _device.default_setting()) == "auto"


def is_first_process() -> bool:
    """Whether this process speaks for all that train together."""
    return bool(mx.distributed.init().rank() == 0)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"mlx-ane lora: warning: {text}", file=sys.stderr, flush=True)
