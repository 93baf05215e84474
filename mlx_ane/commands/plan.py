"""mlx-ane plan: what a model asks of an engine, from its config alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlx import nn

from mlx_ane import chips
from mlx_ane._console import explaining, to_json
from mlx_ane.lora.files import check_model, described
from mlx_ane.planner import plan

HELP = "predict programs, placement, memory and time of a model on a chip"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane plan`."""
    parser.add_argument("model", help="folder or hub id of an mlx-lm model")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument(
        "--seq",
        type=int,
        nargs="+",
        default=[512],
        help="tokens a sequence; several for a distribution (default: 512)",
    )
    parser.add_argument("--chip", help="M1 to M6 or h13 to h18 (default: this one)")
    parser.add_argument(
        "--frozen", action="store_true", help="as a frozen base (LoRA): weights staged"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    if args.chip is not None:
        chips.find(args.chip)
    for flag in ("batch", "seq"):
        value = getattr(args, flag)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"[mlx_ane.plan] --{flag} is {value}, need 1 or more.")
    check_model(args.model, "plan", parts=())
    with explaining(f"[mlx_ane.plan] model {described(args.model)}"):
        model = _model(args.model)
    if args.frozen:
        model.freeze()
    found = plan(model, [(args.batch, seq) for seq in args.seq], chip=args.chip)
    print(to_json(found.to_dict()) if args.json else found)
    return 0


def _model(name: str) -> nn.Module:
    """The model of a config, its weights random and never computed."""
    try:
        from mlx_lm.utils import _download, _get_classes, load_config
    except ImportError as error:
        raise RuntimeError(
            "[mlx_ane.plan] mlx-lm is not installed; run: pip install 'mlx-ane[lora]'"
        ) from error
    config = load_config(Path(_download(name, allow_patterns=["*.json"])))
    model_class, arguments = _get_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    quantization: dict[str, Any] | None = config.get("quantization")
    if quantization is not None:
        _quantize(model, quantization)
    return model


def _quantize(model: nn.Module, quantization: dict[str, Any]) -> None:
    """As mlx-lm loads it: options of a layer by its path, else those of all."""
    size, bits = quantization["group_size"], quantization["bits"]

    def options(path: str, module: nn.Module) -> Any:
        if path in quantization:
            return quantization[path]
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % size == 0

    mode = quantization.get("mode", "affine")
    nn.quantize(model, size, bits, mode=mode, class_predicate=options)
