"""mlx-ane plan: what a model asks of a chip, and what a training step takes there."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ane import chips
from mlx_ane._console import explaining, to_json
from mlx_ane.lora.files import check_model, described
from mlx_ane.planner import plan

HELP = "predict programs, memory and time of a model on a chip, and advise"

#: Quantisation of checkpoints by their "quant_method", as mlx-lm reads them.
METHODS: dict[str, dict[str, Any]] = {
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "modelopt": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "awq": {"group_size": 128, "bits": 4},
    "gptq": {"group_size": 128, "bits": 4},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane plan`."""
    parser.add_argument("model", help="folder or hub id of an mlx-lm model")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument(
        "--seq",
        type=int,
        nargs="+",
        default=[512],
        help="tokens a sequence; several, one after the other (default: 512)",
    )
    parser.add_argument("--chip", help="M1 to M6 or h13 to h18 (default: this one)")
    parser.add_argument(
        "--fine-tune-type",
        choices=("lora", "dora", "full"),
        default="lora",
        help="what a training step trains, as in mlx-ane lora (default: lora)",
    )
    parser.add_argument(
        "--num-layers",
        type=int,
        help="blocks that are trained, the last ones; -1 for all (default: mlx-lm's)",
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
    if args.num_layers is not None and not (
        args.num_layers > 0 or args.num_layers == -1
    ):
        raise ValueError(
            f"[mlx_ane.plan] --num-layers is {args.num_layers}, need 1 or more, or -1."
        )
    check_model(args.model, "plan", parts=())
    with explaining(f"[mlx_ane.plan] model {described(args.model)}"):
        model = _model(args.model)
        _train(model, args.fine_tune_type, args.num_layers)
    found = plan(model, [(args.batch, seq) for seq in args.seq], chip=args.chip)
    print(to_json(found.to_dict()) if args.json else found)
    return 0


def _mlx_lm(module: str) -> Any:
    try:
        return importlib.import_module(f"mlx_lm.{module}")
    except ImportError as error:
        raise RuntimeError(
            "[mlx_ane.plan] mlx-lm is not installed; run: pip install 'mlx-ane[lora]'"
        ) from error


def _model(name: str) -> nn.Module:
    """The model of a folder, no weight read; of a config alone, without weights."""
    utils = _mlx_lm("utils")
    folder = Path(utils._download(name, allow_patterns=["*.json"]))
    if any(folder.glob("model*.safetensors")):
        found: nn.Module = utils.load_model(folder, lazy=True)[0]
        return found
    config = utils.load_config(folder)
    model_class, arguments = utils._get_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    text = config.get("text_config", {})
    names = [c.get(key) for c in (config, text) for key in ("dtype", "torch_dtype")]
    model.set_dtype(getattr(mx, next(filter(None, names), "float32")))
    _quantize(model, config, text)
    return model


def _quantize(model: nn.Module, config: dict[str, Any], text: dict[str, Any]) -> None:
    """As mlx-lm loads it: options of a layer by its path, else those of all."""
    own = config.get("quantization")
    theirs = config.get("quantization_config") or text.get("quantization_config")
    quantization = own or (theirs and _of_method(theirs))
    if not quantization:
        return
    size, bits = quantization["group_size"], quantization["bits"]

    def options(path: str, module: nn.Module) -> Any:
        if path in quantization:
            return quantization[path]
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % size:
            return False
        # Formats that are not MLX's leave tables and heads as they are.
        head = isinstance(module, nn.Embedding) or path.endswith("lm_head")
        return bool(own) or not head

    mode = quantization.get("mode", "affine")
    nn.quantize(model, size, bits, mode=mode, class_predicate=options)


def _of_method(theirs: dict[str, Any]) -> dict[str, Any] | None:
    """MLX's options for a quantisation of other formats; None if it is undone."""
    if "group_size" in theirs and "quant_method" not in theirs:
        return theirs  # MLX's own, under the other name
    method = theirs.get("quant_method", "")
    if method == "compressed-tensors":
        found: dict[str, Any] = _mlx_lm("utils")._compressed_tensors_quantization(
            theirs
        )
        return found
    if method == "fp8" and theirs.get("scale_fmt") == "ue8m0":
        method = "mxfp8"
    if method not in METHODS:
        return None
    return METHODS[method] | {k: theirs[k] for k in ("group_size",) if k in theirs}


def _train(model: nn.Module, kind: str, blocks: int | None) -> None:
    """Make trainable what `mlx-ane lora` would, with mlx-lm's defaults."""
    defaults = _mlx_lm("lora").CONFIG_DEFAULTS
    most = len(model.layers)
    count = defaults["num_layers"] if blocks is None else blocks
    count = most if count == -1 else min(count, most)
    model.freeze()
    if kind == "full":
        for layer in model.layers[most - count :]:
            layer.unfreeze()
    else:
        _mlx_lm("tuner.utils").linear_to_lora_layers(
            model, count, defaults["lora_parameters"], use_dora=kind == "dora"
        )
