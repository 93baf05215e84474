"""Options of `mlx-ane lora`: flags before YAML before defaults, all by one table."""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.optimizers import schedulers

from mlx_ane import optimizers
from mlx_ane._console import closest, ending, why_unwritable
from mlx_ane._types import DEVICES

#: Options of ours with their defaults: flags, or the block `ane:` of the YAML file.
DEFAULTS: dict[str, Any] = {
    "device": None,
    "policy": "all",
    "objective": "time",
    "precision": None,
    "predicate": None,
    "fused": True,
    "attention": None,
    "granularity": "layer",
    "fallback": None,
    "verify": False,
    "report": "short",
    "plot": None,
}

OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "muon": "Muon",
    "sgd": "SGD",
    "adafactor": "Adafactor",
}

#: Schedules whose arguments are numbers, which a YAML file can give.
SCHEDULES: dict[str, Callable[..., Any]] = {
    name: function
    for name, function in inspect.getmembers(schedulers, inspect.isfunction)
    if function.__module__ == schedulers.__name__ and name != "join_schedules"
}


@dataclass(frozen=True)
class Place:
    """Where a value was written: a flag, or a key of a file."""

    keys: tuple[Any, ...] = ()
    file: str | None = None
    #: Lines of the file by keys.
    lines: Mapping[tuple[Any, ...], int] = field(default_factory=dict)
    #: Collects the keys that nobody reads.
    ignored: list[str] = field(default_factory=list)

    def __truediv__(self, key: Any) -> Place:
        return replace(self, keys=(*self.keys, key))

    def __str__(self) -> str:
        name = ".".join(map(str, self.keys))
        if self.file is None:
            return f"--{name.replace('_', '-')}"
        line = self.lines.get(self.keys)
        where = self.file if line is None else f"{self.file}, line {line}"
        return f"{where}: {name}" if name else where

    def hint(self, names: Iterable[str]) -> str:
        """The key with its line and the known name that is nearest."""
        line, near = self.lines.get(self.keys), closest(self.keys[-1], names)
        found = [f"line {line}"] if line else []
        found += [f"did you mean {near!r}?"] if near else []
        name = ".".join(map(str, self.keys))
        return f"{name} ({', '.join(found)})" if found else name

    def wrong(self, value: Any, need: str, names: Iterable[str] = ()) -> ValueError:
        """The error that says what was got and what is needed."""
        return ValueError(
            f"[mlx_ane.lora] {self} is {value!r}, need {need}{ending(value, names)}"
        )


#: Returns the value as the program takes it; raises ValueError.
Check = Callable[[Place, Any], Any]


def boolean(at: Place, value: Any) -> bool:
    """True or false; text such as "no" would count as true."""
    if not isinstance(value, bool):
        raise at.wrong(value, "true or false")
    return value


def text(at: Place, value: Any) -> str:
    """Any text."""
    if not isinstance(value, str):
        raise at.wrong(value, "text")
    return value


def texts(at: Place, value: Any) -> list[str]:
    """A list of texts; a single text would be searched for its parts."""
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise at.wrong(value, "a list of texts")
    return value


def number(
    whole: bool = False,
    least: float = -math.inf,
    below: float = math.inf,
    also: int | None = None,
) -> Check:
    """A finite number in [least, below), or the value `also`."""
    need = "a whole number" if whole else "a number"
    bounds = [f"at least {least:g}"] if least > -math.inf else []
    bounds += [f"below {below:g}"] if below < math.inf else []
    need += f" of {' and '.join(bounds)}" if bounds else ""
    need += "" if also is None else f", or {also}"

    def check(at: Place, value: Any) -> Any:
        if isinstance(value, str):
            raise at.wrong(value, f"{need}, written without quotes")
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = good and math.isfinite(value) and (not whole or value == int(value))
        if not good or not (least <= value < below or value == also):
            raise at.wrong(value, need)
        return int(value) if whole else value

    return check


def choice(names: Iterable[str], fold: bool = False) -> Check:
    """One of the names; in any case if `fold`."""
    names = tuple(names)

    def check(at: Place, value: Any) -> str:
        name = value.lower() if fold and isinstance(value, str) else value
        if not isinstance(name, str) or name not in names:
            raise at.wrong(value, f"one of {', '.join(names)}", names)
        return name

    return check


def items(check: Check, length: int | None = None) -> Check:
    """A list whose items pass a check."""

    def checked(at: Place, value: Any) -> list[Any]:
        if not isinstance(value, list) or length not in (None, len(value)):
            of = "" if length is None else f"{length} "
            raise at.wrong(value, f"a list of {of}values")
        return [check(at / i, item) for i, item in enumerate(value)]

    return checked


def mapping(
    table: Mapping[str, Check], required: Iterable[str] = (), strict: bool = False
) -> Check:
    """Keys with their checks; others are noted as ignored, or refused if `strict`."""

    def checked(at: Place, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise at.wrong(value, "options with values")
        for key in value:
            if key in table:
                continue
            if strict:
                raise ValueError(
                    f"[mlx_ane.lora] {at / key} is unknown, need one of "
                    f"{', '.join(table)}{ending(key, table)}"
                )
            at.ignored.append((at / key).hint(table))
        require(at, value, required)
        return {
            key: check(at / key, value[key])
            for key, check in table.items()
            if value.get(key) is not None
        }

    return checked


def require(at: Place, value: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse options that lack one of the keys."""
    missing = [key for key in keys if value.get(key) is None]
    if missing:
        hint = "; mlx-lm has scale, not alpha" if "alpha" in value else ""
        raise ValueError(
            f"[mlx_ane.lora] {at} has {', '.join(map(str, value)) or 'nothing'}, need "
            f"also {', '.join(missing)}{hint}."
        )


def size(at: Place, value: Any) -> int:
    """Bytes as a number, or as text such as 2GB."""
    try:
        found = _mlx_lm("utils")._parse_size(value) if isinstance(value, str) else value
    except (ArithmeticError, KeyError, ValueError):
        raise at.wrong(value, "bytes, such as 2000000 or 2GB") from None
    return int(number(whole=True, least=0)(at, found))


def reporters(at: Place, value: Any) -> str:
    """Services that mlx-lm reports to, by comma, whose packages are installed."""
    known = _mlx_lm("tuner.callbacks").SUPPORT_CALLBACK
    for name in text(at, value).split(","):
        name = name.strip().lower()
        if name and name not in known:
            raise at.wrong(value, f"one or more of {', '.join(known)}, by comma", known)
        if name and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"[mlx_ane.lora] {at} is {value!r}, but {name} is not installed; run: "
                f"pip install {name}"
            )
    return str(value)


def expressions(at: Place, value: Any) -> list[str]:
    """A regular expression, or several."""
    patterns = texts(at, [value] if isinstance(value, str) else value)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"[mlx_ane.lora] {at}: {pattern!r} is no regular expression: {error}."
            ) from error
    return patterns


def of_parameter(hint: Any, default: Any) -> Check:
    """The check of an argument of a Python function, from its declaration."""
    if hint is bool:
        return boolean
    if mx.Dtype in typing.get_args(hint):
        return choice(optimizers.STATE_DTYPES)
    if isinstance(default, (list, tuple)):
        return items(number(), len(default))
    return number(whole=hint is int)


def arguments(function: Callable[..., Any]) -> dict[str, Check]:
    """Checks of a function's arguments by name; `self` and the rate are not given."""
    hints = typing.get_type_hints(function)
    return {
        name: of_parameter(hints[name], parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "learning_rate")
    }


def schedule(at: Place, value: Any) -> dict[str, Any]:
    """A schedule of the learning rate, as mlx_lm.lora takes it."""
    table = {
        "name": choice(SCHEDULES),
        "arguments": lambda at, value: value,
        "warmup": number(whole=True, least=0),
        "warmup_init": number(least=0.0),
    }
    found: dict[str, Any] = mapping(table, ("name", "arguments"))(at, value)
    checks = arguments(SCHEDULES[found["name"]])
    signature = inspect.signature(SCHEDULES[found["name"]])
    given, place = found["arguments"], at / "arguments"
    try:
        signature.bind(*given)
    except TypeError:
        needed = ", ".join(str(p) for p in signature.parameters.values())
        raise place.wrong(given, f"a list of {needed}") from None
    found["arguments"] = [
        check(place / i, item)
        for i, (item, check) in enumerate(zip(given, checks.values(), strict=False))
    ]
    return found


#: Endings of a plot's file.
PLOTS = (".png", ".pdf", ".svg")


def plot_file(at: Place, value: Any) -> str:
    """A file that can be drawn to, with matplotlib installed."""
    if Path(text(at, value)).suffix.lower() not in PLOTS:
        raise at.wrong(value, f"a file that ends with {', '.join(PLOTS)}")
    why = why_unwritable(value)
    if why:
        raise ValueError(f"[mlx_ane.lora] {at} is {value!r}, which {why}.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            f"[mlx_ane.lora] {at} needs matplotlib; run: pip install 'mlx-ane[plot]'"
        )
    return str(value)


FEATURES = {
    name: text
    for name in ("prompt_feature", "completion_feature", "chat_feature", "text_feature")
}

#: An entry of hf_dataset.
DATASET = mapping(
    {
        "path": text,
        "config": mapping({}),
        "train_split": text,
        "valid_split": text,
        "test_split": text,
        "mask_prompt": boolean,
        **FEATURES,
    },
    ("path",),
)


def datasets(at: Place, value: Any) -> Any:
    """One entry, or a list of them."""
    return items(DATASET)(at, value) if isinstance(value, list) else DATASET(at, value)


#: Checks of options that a parser does not tell, or not fully.
OPTIONS: dict[str, Check] = {
    "model": text,
    "optimizer": choice(OPTIMIZERS, fold=True),
    "num_layers": number(whole=True, least=1, also=-1),
    "batch_size": number(whole=True, least=1),
    "iters": number(whole=True, least=1),
    "val_batches": number(whole=True, least=0, also=-1),
    "test_batches": number(whole=True, least=1, also=-1),
    "learning_rate": number(least=0.0),
    "steps_per_report": number(whole=True, least=1),
    "steps_per_eval": number(whole=True, least=1),
    "grad_accumulation_steps": number(whole=True, least=1),
    "save_every": number(whole=True, least=1),
    "max_seq_length": number(whole=True, least=2),
    "seed": number(whole=True, least=0, below=2**32),
    "clear_cache_threshold": size,
    "report_to": reporters,
    "device": choice(DEVICES),
    "predicate": expressions,
    "plot": plot_file,
}

#: Options that only a YAML file has.
IN_FILES: dict[str, Check] = {
    "lora_parameters": mapping(
        {
            "rank": number(whole=True, least=1),
            "dropout": number(least=0.0, below=1.0),
            "scale": number(),
            "keys": texts,
        }
    ),
    "optimizer_config": mapping(dict.fromkeys(OPTIMIZERS, lambda at, value: value)),
    "lr_schedule": schedule,
    "hf_dataset": datasets,
    **FEATURES,
}


def of_action(action: argparse.Action) -> Check:
    """The check of a flag, also for the same option in YAML."""
    if action.dest in OPTIONS:
        return OPTIONS[action.dest]
    if action.nargs == 0:
        return boolean
    if action.choices:
        return choice(action.choices)
    if action.type in (int, float):
        return number(whole=action.type is int)
    return text


def configure(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> types.SimpleNamespace:
    """Flags before the YAML file before defaults, for mlx-lm's options and ours.

    Args:
        args (Namespace): What the parser found.
        parser (ArgumentParser): Declares mlx_lm.lora's flags and ours, no others.

    Returns:
        SimpleNamespace: mlx-lm's options by name, and ours in the dict ``ane``.

    Raises:
        ValueError: If a value of a flag or of the file is not one that the program
            takes; it names the file, the line and the key.
    """
    checks = {a.dest: of_action(a) for a in parser._actions if a.dest != "json"}
    ours = {k: c for k, c in checks.items() if k in DEFAULTS}
    theirs = {k: c for k, c in checks.items() if k not in DEFAULTS}
    table = {**theirs, **IN_FILES, "ane": mapping(ours, strict=True)}
    at, content = read(args.config) if args.config else (Place(), {})
    file = mapping(table)(at, content)
    flags = {
        k: checks[k](Place((k,)), value)
        for k, value in vars(args).items()
        if k in checks and value is not None
    }
    values = {
        **copy.deepcopy(_mlx_lm("lora").CONFIG_DEFAULTS),
        **file,
        **{k: v for k, v in flags.items() if k in theirs},
        "ane": {**DEFAULTS, **file.get("ane", {})}
        | {k: v for k, v in flags.items() if k in ours},
    }
    config = types.SimpleNamespace(**values)
    _check_together(config, at, content)
    if at.ignored:
        print(
            f"mlx-ane lora: {at.file} has keys that are ignored: "
            f"{', '.join(at.ignored)}",
            file=sys.stderr,
        )
    return config


def _check_together(
    config: types.SimpleNamespace, at: Place, content: Mapping[str, Any]
) -> None:
    """What depends on several options."""
    if config.fine_tune_type != "full":
        adapters = content.get("lora_parameters") or config.lora_parameters
        require(at / "lora_parameters", adapters, ("rank", "dropout", "scale"))
    options = config.optimizer_config.get(config.optimizer) or {}
    config.optimizer_config[config.optimizer] = mapping(
        arguments(optimizer_class(config).__init__), strict=True
    )(at / "optimizer_config" / config.optimizer, options)
    if config.train and config.grad_accumulation_steps > config.iters:
        raise ValueError(
            f"[mlx_ane.lora] grad_accumulation_steps is "
            f"{config.grad_accumulation_steps}, need at most iters, {config.iters}; "
            f"else no step is made."
        )
    ranks = mx.distributed.init().size()
    if config.batch_size % ranks:
        raise ValueError(
            f"[mlx_ane.lora] batch_size is {config.batch_size}, need a multiple of the "
            f"{ranks} processes."
        )


def optimizer_class(config: types.SimpleNamespace) -> type[mlx.optimizers.Optimizer]:
    """mlx-lm's optimizer of that name; Adam and AdamW in one pass if `fused`."""
    fused = config.ane["fused"] and config.optimizer in ("adam", "adamw")
    found: type[mlx.optimizers.Optimizer] = getattr(
        optimizers if fused else mlx.optimizers, OPTIMIZERS[config.optimizer]
    )
    return found


def read(path: str) -> tuple[Place, dict[str, Any]]:
    """The content of a YAML file, and the place that knows its lines."""
    lora = _mlx_lm("lora")
    try:
        source = Path(path).read_text(encoding="utf-8")
        content = lora.yaml.load(source, lora.yaml_loader)
        node = lora.yaml.compose(source, lora.yaml_loader)
        lines = dict(_lines(node))
    except OSError as error:
        raise ValueError(
            f"[mlx_ane.lora] --config is {path!r}, need a file: {error.strerror}."
        ) from error
    except (lora.yaml.YAMLError, ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"[mlx_ane.lora] {path} is no YAML: {found}.") from error
    return Place((), path, lines), content


def _lines(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, int]]:
    """The line of every key below a YAML node."""
    content = node.value if node is not None else ""
    if isinstance(content, list):
        for i, item in enumerate(content):
            # A mapping's items are pairs of nodes, a sequence's are nodes.
            name, child = item if isinstance(item, tuple) else (item, item)
            key = name.value if isinstance(item, tuple) else i
            yield (*keys, key), name.start_mark.line + 1
            yield from _lines(child, (*keys, key))


def _mlx_lm(module: str) -> Any:
    """A module of mlx-lm, which is imported when the command runs: it takes long."""
    return importlib.import_module(f"mlx_lm.{module}")
