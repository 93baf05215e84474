"""mlx-ane export: a language model of mlx-lm as a Core ML package."""

from __future__ import annotations

import argparse
from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_ane._console import explaining, to_json
from mlx_ane.constants import WAYS
from mlx_ane.export import DEPLOYMENTS, export
from mlx_ane.lora.files import check_model, described

HELP = "write a language model as a Core ML package, and compare it with MLX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mlx-ane export`."""
    parser.add_argument("model", help="folder or hub id of an mlx-lm model")
    parser.add_argument("--out", required=True, help="the package, NAME.mlpackage")
    parser.add_argument("--adapter-path", help="folder of LoRA adapters to fuse")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: 1)")
    parser.add_argument(
        "--length",
        type=int,
        nargs="+",
        default=[128],
        help="tokens; with several, each is a function of the package (default: 128)",
    )
    parser.add_argument(
        "--last", action="store_true", help="logits of the last token only"
    )
    parser.add_argument(
        "--weights", choices=list(WAYS), default="float16", help="(default: float16)"
    )
    parser.add_argument(
        "--deployment",
        choices=list(DEPLOYMENTS),
        default="macOS14",
        help="the oldest system that it is to run on (default: macOS14)",
    )
    parser.add_argument("--description", default="", help="what the model does")
    parser.add_argument("--author", default="", help="who made it")
    parser.add_argument("--license", default="", help="under which terms")
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not run the package on the emulated engine to compare it with MLX",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    for flag in ("batch", "length"):
        value: Any = getattr(args, flag)
        if min(value if isinstance(value, list) else [value]) < 1:
            raise ValueError(f"[mlx_ane.export] --{flag} is {value}, need 1 or more.")
    check_model(args.model, "export", parts=("weights",))
    model, vocabulary = _load(args.model, args.adapter_path)

    def logits(tokens: mx.array) -> dict[str, mx.array]:
        found = model(tokens)
        return {"logits": found[:, -1] if args.last else found}

    length = max(args.length)
    tokens = mx.arange(args.batch * length).reshape(args.batch, length) % vocabulary
    report = export(
        logits,
        args.out,
        tokens.astype(mx.int32),
        weights=args.weights,
        deployment=args.deployment,
        lengths=args.length,
        check=args.check,
        description=args.description,
        author=args.author,
        license=args.license,
    )
    print(to_json(report.to_dict()) if args.json else report)
    return 0


def _load(name: str, adapters: str | None) -> tuple[nn.Module, int]:
    """The model in eval mode, and the size of its vocabulary."""
    try:
        from mlx_lm.utils import _download, load_adapters, load_model
    except ImportError as error:
        raise RuntimeError(
            "[mlx_ane.export] mlx-lm is not installed; run: pip install 'mlx-ane[lora]'"
        ) from error
    with explaining(f"[mlx_ane.export] model {described(name)}"):
        model, config = load_model(_download(name))
    if adapters is not None:
        with explaining(f"[mlx_ane.export] adapters {adapters!r} do not fit"):
            model = load_adapters(model, adapters)
    model.eval()
    return model, int(config.get("text_config", config)["vocab_size"])
