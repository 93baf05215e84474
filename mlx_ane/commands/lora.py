"""mlx-ane lora: mlx_lm.lora's flags, YAML, data and trainer, on devices of ours."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane import _device, _ext, plot
from mlx_ane._console import Interrupted, ending, explaining, to_json
from mlx_ane._types import (
    ATTENTIONS,
    FALLBACKS,
    GRANULARITIES,
    OBJECTIVES,
    POLICIES,
    PRECISIONS,
)
from mlx_ane.convert import Predicate, convert
from mlx_ane.lora import files, options, words
from mlx_ane.report import ConversionReport
from mlx_ane.verify import verify

HELP = "fine-tune with mlx-lm's trainer: LoRA, DoRA, QLoRA or all weights"


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
            action.default = None  # any other would win over the YAML file
            if action.dest == "clear_cache_threshold":
                action.type = None  # text such as 2GB is checked with all options
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
        choices=ATTENTIONS,
        help="fused: mlx_ane's, on the device (default where MLX has no GPU); mlx: "
        "MLX's",
    )
    ours.add_argument(
        "--granularity",
        choices=GRANULARITIES,
        help="block: a whole block of the model is a program, and its gradient "
        "another; auto: whichever is estimated faster (default: layer)",
    )
    ours.add_argument(
        "--fallback",
        choices=FALLBACKS,
        help="what a device call that failed is",
    )
    ours.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="compare with plain MLX on the first batch; stop if it differs",
    )
    ours.add_argument(
        "--report",
        choices=("short", "full"),
        help="full: the report at the end has a line for each layer",
    )
    ours.add_argument(
        "--plot", metavar="F", help="draw the losses (PNG, PDF, SVG) when trained"
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
            print(to_json({**result, "placement": report.to_dict()}))
        else:
            print(f"\n{report.full() if config.ane['report'] == 'full' else report}")
    return 0


def configure(args: argparse.Namespace) -> types.SimpleNamespace:
    """The checked options: flags before the YAML file before defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return options.configure(args, parser)


def fine_tune(config: types.SimpleNamespace) -> dict[str, Any]:
    """The steps of mlx_lm.lora with a conversion between adapters and training.

    Returns:
        dict: "train" and "validation" (mlx-lm's reports, whose "iteration" is the
        one that it prints), "test" (a loss or None), "adapters" (a file or None),
        "counters" and "report".
    """
    if not (config.train or config.test):
        raise ValueError("[mlx_ane.lora] got neither --train nor --test, need one.")
    files.check_model(config.model)
    files.check_adapters(config)
    rows = files.read_rows(config)
    _device.resolve(config.ane["device"], "lora")
    optimizer = make_optimizer(config)
    np.random.seed(config.seed)  # mlx-lm draws its batches from NumPy
    model, tokenizer = load(config)
    train_set, valid_set, test_set = files.make_datasets(config, rows, tokenizer)
    mx.eval(model.parameters())
    batch = first_batch(train_set, config) if config.train else None
    report = move(model, config, batch)
    if words.is_first_process():
        words.before(model, report, config)
        if little := words.warning(report, config):
            words.warn(little)
    reports = Reports(config)
    if batch is not None:
        if config.ane["verify"]:
            check(model, batch)
        train(model, optimizer, train_set, valid_set, config, reports, report)
    adapters = str(Path(config.adapter_path) / "adapters.safetensors")
    try:
        test = evaluate(model, test_set, config) if config.test else None
    except KeyboardInterrupt:
        trained = f"the trained weights are in {config.adapter_path}"
        raise Interrupted(trained if config.train else "nothing is saved") from None
    return {
        "train": reports.train,
        "validation": reports.validation,
        "test": test,
        "adapters": adapters if config.train else None,
        "counters": _ext.counters(),
        "report": report,
    }


def load(config: types.SimpleNamespace) -> tuple[nn.Module, Any]:
    """The model with its adapters, and its tokenizer; no weight is read yet."""
    trust = {"trust_remote_code": config.trust_remote_code}
    with explaining(f"[mlx_ane.lora] model {files.described(config.model)}"):
        model, tokenizer = _mlx_lm("lora").load(
            config.model, tokenizer_config=trust, lazy=True, **trust
        )
    if config.train:
        add_adapters(model, config)
    elif config.adapter_path != "":
        with explaining(f"[mlx_ane.lora] adapters {config.adapter_path!r} do not fit"):
            _mlx_lm("lora").load_adapters(model, config.adapter_path)
    return model, tokenizer


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
        _refuse_quantized(model)
        for layer in model.layers[-max(config.num_layers, 0) :]:
            layer.unfreeze()
        config.lora_parameters = None
    else:
        _check_keys(model, config.lora_parameters.get("keys"))
        with explaining("[mlx_ane.lora] lora_parameters do not fit the model"):
            _mlx_lm("tuner.utils").linear_to_lora_layers(
                model,
                config.num_layers,
                config.lora_parameters,
                use_dora=config.fine_tune_type == "dora",
            )
    if not tree_flatten(model.trainable_parameters()):
        raise ValueError(
            f"[mlx_ane.lora] the last {config.num_layers} blocks have no layer of "
            f"lora_parameters.keys, need one to train; raise num_layers."
        )
    if config.resume_adapter_file is not None:
        files.resume(model, config.resume_adapter_file)


def _refuse_quantized(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if hasattr(module, "bits") and hasattr(module, "group_size"):
            raise ValueError(
                f"[mlx_ane.lora] fine_tune_type is 'full', but {path} is quantised to "
                f"{module.bits} bits, which no optimizer trains; use lora or dora, or "
                f"dequantise the model: mlx_lm.convert -d."
            )


def _check_keys(model: nn.Module, keys: list[str] | None) -> None:
    """Name the keys of LoRA that are no layer, in a block or of the whole model."""
    if keys is None:
        return
    known = {p for block in model.layers for p, _ in block.named_modules() if p}
    known |= {path for path, _ in model.named_modules() if path}
    unknown = [key for key in keys if key not in known]
    found = (
        f"[mlx_ane.lora] lora_parameters.keys has {', '.join(unknown) or 'nothing'}, "
        f"need names of layers such as {', '.join(_layer_names(model)[:3])}"
        f"{ending(unknown[0], known) if unknown else '.'}"
    )
    if len(unknown) == len(keys):
        raise ValueError(found)
    if unknown:
        print(found, file=sys.stderr)


def _layer_names(model: nn.Module) -> list[str]:
    leaves = tree_flatten(model.layers[-1].leaf_modules(), is_leaf=nn.Module.is_module)
    return [path for path, module in leaves if hasattr(module, "to_quantized")]


def move(
    model: nn.Module,
    config: types.SimpleNamespace,
    batch: tuple[mx.array, mx.array] | None = None,
) -> ConversionReport:
    """Converts the model as the block `ane` says, for batches like this one."""
    ours = config.ane
    if ours["fallback"] is not None:
        _device.set_fallback(ours["fallback"])
    has_gpu = mx.default_device() == mx.gpu
    return convert(
        model,
        class_predicate=_predicate(ours["predicate"]),
        device=ours["device"],
        policy=ours["policy"],
        objective=ours["objective"],
        precision=ours["precision"],
        attention=ours["attention"] or ("mlx" if has_gpu else "fused"),
        granularity=ours["granularity"],
        batch_shape=None if batch is None else _input_shape(batch[0]),
    )


def _input_shape(tokens: mx.array) -> tuple[int, int]:
    """Of the model's input: each token but the last predicts the next one."""
    return tokens.shape[0], tokens.shape[1] - 1


def first_batch(
    train_set: Any, config: types.SimpleNamespace
) -> tuple[mx.array, mx.array]:
    """The batch that training will see first, with its lengths."""
    trainer = _mlx_lm("tuner.trainer")
    state = np.random.get_state()
    found: tuple[mx.array, mx.array] = next(
        trainer.iterate_batches(
            train_set,
            config.batch_size,
            config.max_seq_length,
            comm_group=mx.distributed.init(),
        )
    )
    np.random.set_state(state)  # training draws the same batch first
    return found


def _predicate(patterns: list[str] | None) -> Predicate | None:
    if patterns is None:
        return None
    found = [re.compile(p) for p in patterns]
    return lambda path, module: any(p.search(path) for p in found)


def train(
    model: nn.Module,
    optimizer: mlx.optimizers.Optimizer,
    train_set: Any,
    valid_set: Any,
    config: types.SimpleNamespace,
    reports: Reports,
    placement: ConversionReport,
) -> None:
    """mlx-lm's trainer with the options of mlx_lm.lora."""
    ui, trainer = _mlx_lm("cli_ui"), _mlx_lm("tuner.trainer")
    if mx.distributed.init().rank() == 0:
        ui.print_lora_run_header(ui.make_console(), config)
    _mlx_lm("tuner.utils").print_trainable_parameters(model)
    folder = Path(config.adapter_path)
    folder.mkdir(parents=True, exist_ok=True)
    _mlx_lm("utils").save_config(dict(vars(config)), folder / "adapter_config.json")
    start, clock = time.time(), time.perf_counter()
    try:
        with placement.timed():
            trainer.train(
                model=model,
                optimizer=optimizer,
                train_dataset=train_set,
                val_dataset=valid_set if config.val_batches else None,
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
    except KeyboardInterrupt:
        raise _interrupted(config, folder, start) from None
    if words.is_first_process():
        seconds = time.perf_counter() - clock
        words.after(config, seconds, reports.train, reports.validation)
        if config.ane["plot"]:
            reports.plot(config.ane["plot"])


def _interrupted(
    config: types.SimpleNamespace, folder: Path, start: float
) -> Interrupted:
    """What the trainer has saved since the start, and how to go on."""
    saved = [
        file
        for file in sorted(folder.glob("[0-9]*_adapters.safetensors"))
        if file.stat().st_mtime >= start
    ]
    if not saved:
        return Interrupted(
            f"nothing is saved, as save_every is {config.save_every}", []
        )
    done = int(saved[-1].name.split("_")[0])
    return Interrupted(
        f"{saved[-1]} has iteration {done} of {config.iters}; optimizer and schedule "
        f"begin anew",
        [
            *("--resume-adapter-file", str(saved[-1])),
            *("--iters", str(config.iters - done)),
        ],
    )


def make_optimizer(config: types.SimpleNamespace) -> mlx.optimizers.Optimizer:
    """The optimizer with its options and learning rate, or schedule."""
    rate = config.learning_rate
    with explaining(f"[mlx_ane.lora] optimizer {config.optimizer} cannot be made"):
        if config.lr_schedule:
            rate = _mlx_lm("tuner.utils").build_schedule(config.lr_schedule)
        return options.optimizer_class(config)(
            learning_rate=rate, **config.optimizer_config[config.optimizer]
        )


def check(model: nn.Module, batch: tuple[mx.array, mx.array]) -> None:
    """Compares with plain MLX on a batch.

    Args:
        model (nn.Module): The converted model.
        batch (tuple): Tokens and lengths, as mlx-lm's trainer gives them to the loss.

    Raises:
        RuntimeError: If a layer, the loss or a gradient is further off than allowed.
    """
    found = verify(model, *batch, loss=_mlx_lm("tuner.trainer").default_loss)
    _mlx_lm("cli_ui").rprint(found)
    if not found.passed:
        raise RuntimeError(
            "[mlx_ane.lora] the converted model is not shown to be plain MLX on the "
            "first batch (see the table); convert fewer layers by --predicate."
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
            dataset=test_set,
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
        # mlx-lm counts the steps before it; the others the one that it prints it at.
        self.validation.append({**info, "iteration": info["iteration"] + 1})
        if self._next is not None:
            self._next.on_val_loss_report(info)

    def plot(self, path: str) -> None:
        """Draw both losses by iteration."""
        curves = {
            "training": [(i["iteration"], i["train_loss"]) for i in self.train],
            "validation": [(i["iteration"], i["val_loss"]) for i in self.validation],
        }
        plot.losses({k: v for k, v in curves.items() if v}, path)
