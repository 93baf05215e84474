"""mlx-ane lora: mlx_lm.lora's flags, YAML, data and trainer, on devices of ours."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import importlib
import json
import math
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
from mlx import nn

from mlx_ane import _ext, fast, optimizers
from mlx_ane.autotune import OBJECTIVES
from mlx_ane.convert import POLICIES, Predicate, convert
from mlx_ane.nn import PRECISIONS
from mlx_ane.ops import linear
from mlx_ane.report import ConversionReport
from mlx_ane.verify import verify

HELP = "fine-tune with mlx-lm's trainer: LoRA, DoRA, QLoRA or all weights"

#: Options of ours with their defaults: flags, or the block `ane:` of the YAML file.
DEFAULTS: dict[str, Any] = {
    "device": None,
    "policy": "all",
    "objective": "time",
    "precision": None,
    "predicate": None,
    "fused": True,
    "attention": None,
    "fallback": None,
    "verify": False,
}

OPTIMIZERS = {
    "adam": "Adam",
    "adamw": "AdamW",
    "muon": "Muon",
    "sgd": "SGD",
    "adafactor": "Adafactor",
}


def _mlx_lm(module: str) -> Any:
    """A module of mlx-lm, which is imported when the command runs: it takes long."""
    return importlib.import_module(f"mlx_lm.{module}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare mlx_lm.lora's flags as they are, and ours."""
    try:
        theirs = _mlx_lm("lora").build_parser()
    except ImportError:
        parser.error("mlx-lm is not installed; run: pip install 'mlx-ane[lora]'")
    for action in theirs._actions:
        if action.dest != "help":
            parser._add_action(action)
    ours = parser.add_argument_group("mlx_ane")
    ours.add_argument(
        "--device", help="device of the layers: auto, ane, emulated or cpu"
    )
    ours.add_argument(
        "--policy",
        choices=POLICIES,
        help="all: every layer on the device; frozen: those with a frozen weight; "
        "auto: those that measure better there",
    )
    ours.add_argument(
        "--objective", choices=OBJECTIVES, help="what --policy auto minimises"
    )
    ours.add_argument("--precision", choices=PRECISIONS)
    ours.add_argument(
        "--predicate",
        nargs="+",
        metavar="REGEX",
        help="convert only layers whose path matches one of these",
    )
    ours.add_argument(
        "--fused",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="use mlx_ane's one-pass Adam and AdamW (default: yes)",
    )
    ours.add_argument(
        "--attention",
        choices=("fused", "mlx"),
        help="fused: mlx_ane's, on the device (default where MLX has no GPU); mlx: "
        "MLX's",
    )
    ours.add_argument(
        "--fallback",
        choices=("error", "warn", "allow"),
        help="what a device call that failed is",
    )
    ours.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="compare with plain MLX on the first batch; stop if it differs",
    )
    ours.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Train or test as mlx_lm.lora would; print the placement report."""
    config = configure(args)
    with contextlib.ExitStack() as scope:
        if args.json:
            scope.enter_context(contextlib.redirect_stdout(sys.stderr))
        result = fine_tune(config)
    if mx.distributed.init().rank() == 0:
        report = result.pop("report")
        if args.json:
            print(json.dumps({**result, "placement": report.to_dict()}, indent=2))
        else:
            print(f"\n{report}\n\n{_fallbacks(result['counters'])}")
    return 0


def configure(args: argparse.Namespace) -> types.SimpleNamespace:
    """Flags before the YAML file before defaults, for mlx-lm's options and ours.

    Returns:
        SimpleNamespace: mlx-lm's options by name, and ours in the dict ``ane``.

    Raises:
        ValueError: If the file is no YAML mapping or has unknown options of ours.
    """
    file = _read(args.config) if args.config else {}
    block = file.pop("ane", None) or {}
    unknown = sorted(set(block) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"[mlx_ane.lora] {args.config} has the option {unknown[0]!r} under ane, "
            f"need one of {', '.join(DEFAULTS)}."
        )
    flags = {k: v for k, v in vars(args).items() if k not in (*DEFAULTS, "json")}
    values = _first_set(flags, file, copy.deepcopy(_mlx_lm("lora").CONFIG_DEFAULTS))
    ours = {k: getattr(args, k) for k in DEFAULTS}
    return types.SimpleNamespace(**values, ane=_first_set(ours, block, DEFAULTS))


def _read(path: str) -> dict[str, Any]:
    lora = _mlx_lm("lora")
    try:
        content = lora.yaml.load(Path(path).read_text(), lora.yaml_loader)
    except lora.yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"[mlx_ane.lora] {path} is no YAML: {reason}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("ane", {}), dict):
        raise ValueError(
            f"[mlx_ane.lora] {path} and its block ane must map options to values."
        )
    return content


def _first_set(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """For each key the first value that is not None."""
    keys = dict.fromkeys(key for source in sources for key in source)
    return {
        key: next((s[key] for s in sources if s.get(key) is not None), None)
        for key in keys
    }


def fine_tune(config: types.SimpleNamespace) -> dict[str, Any]:
    """The steps of mlx_lm.lora with a conversion between adapters and training.

    Returns:
        dict: "train" and "validation" (mlx-lm's reports), "test" (a loss or None),
        "counters" and "report".
    """
    if not (config.train or config.test):
        raise ValueError("[mlx_ane.lora] got neither --train nor --test, need one.")
    np.random.seed(config.seed)  # mlx-lm draws its batches from NumPy
    trust = {"trust_remote_code": config.trust_remote_code}
    lora = _mlx_lm("lora")
    model, tokenizer = lora.load(config.model, tokenizer_config=trust, **trust)
    train_set, valid_set, test_set = lora.load_dataset(config, tokenizer)
    if config.train:
        add_adapters(model, config)
    elif config.adapter_path != "":
        lora.load_adapters(model, config.adapter_path)
    report = move(model, config)
    reports = Reports(config)
    if config.train and config.ane["verify"]:
        check(model, train_set, config)
    with attention(config), low_rank():
        if config.train:
            train(model, train_set, valid_set, config, reports)
        test = evaluate(model, test_set, config) if config.test else None
    return {
        "train": reports.train,
        "validation": reports.validation,
        "test": test,
        "counters": _ext.counters(),
        "report": report,
    }


@contextlib.contextmanager
def attention(config: types.SimpleNamespace) -> Iterator[None]:
    """While open, mlx-lm's models attend through mlx_ane.fast if so configured."""
    default = "mlx" if mx.default_device() == mx.gpu else "fused"
    if (config.ane["attention"] or default) == "mlx":
        yield
        return
    theirs = mx.fast.scaled_dot_product_attention
    exact = config.ane["precision"] == "exact"  # which no engine is
    device = "cpu" if exact else config.ane["device"]
    ours = functools.partial(fast.scaled_dot_product_attention, device=device)
    # mlx-lm looks the function up at each call.
    mx.fast.scaled_dot_product_attention = ours
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = theirs


@contextlib.contextmanager
def low_rank() -> Iterator[None]:
    """While open, LoRA's own two products run on the BLAS where MLX has no GPU.

    They are too small for an engine, and a large part of a step in MLX's CPU build.
    """
    if mx.default_device() == mx.gpu:
        yield
        return
    layer = _mlx_lm("tuner.lora").LoRALinear
    theirs = layer.__call__

    def ours(self: Any, x: mx.array) -> mx.array:
        # x: (..., K), lora_a: (K, r), lora_b: (r, N) -> (..., N)
        z = linear(self.dropout(x), self.lora_a.T, device="cpu")
        z = linear(z, self.lora_b.T, device="cpu")
        y: mx.array = self.linear(x)
        return y + (self.scale * z).astype(x.dtype)

    layer.__call__ = ours
    try:
        yield
    finally:
        layer.__call__ = theirs


def add_adapters(model: nn.Module, config: types.SimpleNamespace) -> None:
    """Freezes the model and makes trainable what the fine-tuning type names."""
    mx.random.seed(config.seed)
    model.freeze()
    if config.num_layers > len(model.layers):
        raise ValueError(
            f"[mlx_ane.lora] num_layers is {config.num_layers}, but the model has "
            f"{len(model.layers)} layers."
        )
    if config.fine_tune_type == "full":
        for layer in model.layers[-max(config.num_layers, 0) :]:
            layer.unfreeze()
        config.lora_parameters = None
    else:
        try:
            _mlx_lm("tuner.utils").linear_to_lora_layers(
                model,
                config.num_layers,
                config.lora_parameters,
                use_dora=config.fine_tune_type == "dora",
            )
        except KeyError as error:
            raise ValueError(f"[mlx_ane.lora] lora_parameters: {error}.") from error
    if config.resume_adapter_file is not None:
        model.load_weights(config.resume_adapter_file, strict=False)


def move(model: nn.Module, config: types.SimpleNamespace) -> ConversionReport:
    """Converts the model as the block `ane` says."""
    ours = config.ane
    if ours["fallback"] is not None:
        _ext.set_fallback(ours["fallback"])
    return convert(
        model,
        class_predicate=_predicate(ours["predicate"]),
        device=ours["device"],
        policy=ours["policy"],
        objective=ours["objective"],
        precision=ours["precision"],
    )


def _predicate(patterns: str | list[str] | None) -> Predicate | None:
    if patterns is None:
        return None
    if isinstance(patterns, str):
        patterns = [patterns]
    try:
        found = [re.compile(p) for p in patterns]
    except (re.error, TypeError) as error:
        raise ValueError(
            f"[mlx_ane.lora] predicate {patterns!r} is no regular expression: {error}."
        ) from error
    return lambda path, module: any(p.search(path) for p in found)


def train(
    model: nn.Module,
    train_set: Any,
    valid_set: Any,
    config: types.SimpleNamespace,
    reports: Reports,
) -> None:
    """mlx-lm's trainer with the options of mlx_lm.lora."""
    ui, trainer = _mlx_lm("cli_ui"), _mlx_lm("tuner.trainer")
    cached = _mlx_lm("tuner.datasets").CacheDataset
    if mx.distributed.init().rank() == 0:
        ui.print_lora_run_header(ui.make_console(), config)
    _mlx_lm("tuner.utils").print_trainable_parameters(model)
    folder = Path(config.adapter_path)
    folder.mkdir(parents=True, exist_ok=True)
    _mlx_lm("utils").save_config(dict(vars(config)), folder / "adapter_config.json")
    trainer.train(
        model=model,
        optimizer=make_optimizer(config),
        train_dataset=cached(train_set),
        val_dataset=cached(valid_set),
        args=trainer.TrainingArgs(
            batch_size=config.batch_size,
            iters=config.iters,
            val_batches=config.val_batches,
            steps_per_report=config.steps_per_report,
            steps_per_eval=config.steps_per_eval,
            steps_per_save=config.save_every,
            adapter_file=str(folder / "adapters.safetensors"),
            max_seq_length=config.max_seq_length,
            grad_checkpoint=config.grad_checkpoint,
            grad_accumulation_steps=config.grad_accumulation_steps,
            clear_cache_threshold=config.clear_cache_threshold,
        ),
        training_callback=reports,
    )


def make_optimizer(config: types.SimpleNamespace) -> mlx.optimizers.Optimizer:
    """mlx-lm's optimizer of that name; Adam and AdamW in one pass if `fused`."""
    name = config.optimizer.lower()
    if name not in OPTIMIZERS:
        raise ValueError(
            f"[mlx_ane.lora] optimizer is {config.optimizer!r}, need one of "
            f"{', '.join(OPTIMIZERS)}."
        )
    fused = config.ane["fused"] and name in ("adam", "adamw")
    module = optimizers if fused else mlx.optimizers
    rate = config.learning_rate
    if config.lr_schedule:
        rate = _mlx_lm("tuner.utils").build_schedule(config.lr_schedule)
    options = config.optimizer_config.get(name, {})
    optimizer: mlx.optimizers.Optimizer = getattr(module, OPTIMIZERS[name])(
        learning_rate=rate, **options
    )
    return optimizer


def check(model: nn.Module, train_set: Any, config: types.SimpleNamespace) -> None:
    """Compares with plain MLX on the first batch that training will see.

    Raises:
        RuntimeError: If a layer is further off than its device allows.
    """
    trainer = _mlx_lm("tuner.trainer")
    dataset = _mlx_lm("tuner.datasets").CacheDataset(train_set)
    state = np.random.get_state()
    batch = next(
        trainer.iterate_batches(dataset, config.batch_size, config.max_seq_length)
    )
    np.random.set_state(state)  # training draws the same batch first
    found = verify(model, *batch, loss=trainer.default_loss)
    _mlx_lm("cli_ui").rprint(found)
    if not found.passed:
        raise RuntimeError(
            "[mlx_ane.lora] the converted model differs from plain MLX on the first "
            "batch (see the table); convert fewer layers by --predicate."
        )


def evaluate(model: nn.Module, test_set: Any, config: types.SimpleNamespace) -> float:
    """Mean loss in nats a token over the test set."""
    batches = len(test_set) // config.batch_size
    if config.test_batches != -1:
        batches = min(batches, config.test_batches)
    silent = mx.distributed.init().rank() != 0
    with _mlx_lm("lora").tqdm(total=batches, desc="testing", disable=silent) as bar:
        loss: float = _mlx_lm("tuner.trainer").evaluate(
            model=model,
            dataset=_mlx_lm("tuner.datasets").CacheDataset(test_set),
            batch_size=config.batch_size,
            num_batches=config.test_batches,
            max_seq_length=config.max_seq_length,
            progress_callback=bar.update,
        )
    _mlx_lm("cli_ui").rprint(f"Test loss {loss:.3f}, Test ppl {math.exp(loss):.3f}.")
    return loss


class Reports:
    """Keeps mlx-lm's reports, adds our counters, and hands them to its callbacks."""

    def __init__(self, config: types.SimpleNamespace) -> None:
        self.train: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self._next = _mlx_lm("tuner.callbacks").get_reporting_callbacks(
            config.report_to,
            project_name=config.project_name,
            log_dir=config.adapter_path,
            config=vars(config),
        )

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        counts = _ext.counters()
        fallbacks = sum(n for k, n in counts.items() if k.startswith("fallback_"))
        info = {**info, "device_calls": counts["device_calls"], "fallbacks": fallbacks}
        self.train.append(info)
        if self._next is not None:
            self._next.on_train_loss_report(info)

    def on_val_loss_report(self, info: dict[str, Any]) -> None:
        self.validation.append(info)
        if self._next is not None:
            self._next.on_val_loss_report(info)


def _fallbacks(counts: dict[str, int]) -> str:
    causes = [
        f"{k[9:]}: {n}" for k, n in counts.items() if k.startswith("fallback_") and n
    ]
    return f"fallbacks: {', '.join(causes) or 'none'}"
