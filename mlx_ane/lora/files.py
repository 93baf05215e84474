"""Files of `mlx-ane lora`, checked before a model loads: model, rows, adapters."""

from __future__ import annotations

import importlib
import importlib.util
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlx_ane._console import explaining, reason, why_unwritable

SETS = ("train", "valid", "test")

#: Names of which a model folder needs one, by what it needs it for.
PARTS = {
    "weights": ("model*.safetensors",),
    "tokenizer": ("tokenizer*", "vocab*", "*.tiktoken", "tekken*"),
}


def check_model(
    name: str, where: str = "lora", parts: Sequence[str] = tuple(PARTS)
) -> None:
    """Refuse a folder that is no model; other names are those of the hub.

    Args:
        name (str): A folder, or the id of a model on the hub.
        where (str): The command, for the error message.
        parts (sequence): What it needs beside config.json.

    Raises:
        ValueError: If it is a file, or a folder that lacks something.
    """
    folder = Path(name)
    if folder.is_file():
        raise ValueError(
            f"[mlx_ane.{where}] model is {name!r}, a file, need its folder."
        )
    if not folder.exists():
        if name.count("/") > 1 or name.startswith(("/", ".", "~")):
            raise ValueError(
                f"[mlx_ane.{where}] model is {name!r}, which does not exist; give a "
                f"folder or an id of the hub (owner/name)."
            )
        return
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"[mlx_ane.{where}] model is {name!r}, but {config} is missing; give the "
            f"folder of an mlx-lm model."
        )
    _mapping(config, where)
    for part in parts:
        if not any(file for glob in PARTS[part] for file in folder.glob(glob)):
            raise ValueError(
                f"[mlx_ane.{where}] model is {name!r}, which has no {part} "
                f"({' or '.join(PARTS[part])}); download it whole."
            )


def described(model: str) -> str:
    """The name of a model, as the begin of a sentence on why it cannot be loaded."""
    if Path(model).exists():
        return f"{model!r} cannot be loaded"
    return f"{model!r} is no folder here, and the hub does not give it"


def _mapping(file: Path, where: str) -> dict[str, Any]:
    """The content of a JSON file that maps names to values."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"[mlx_ane.{where}] {file} is no JSON: {reason(error)}."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"[mlx_ane.{where}] {file} must map names to values.")
    return found


def check_adapters(config: types.SimpleNamespace) -> None:
    """Refuse adapters that cannot be written, resumed from or loaded."""
    folder = config.adapter_path
    if config.train:
        why = why_unwritable(folder or ".", folder=True)
        if why:
            raise ValueError(f"[mlx_ane.lora] adapter_path is {folder!r}, which {why}.")
        resume = config.resume_adapter_file
        if resume is not None and not Path(resume).is_file():
            raise ValueError(
                f"[mlx_ane.lora] resume_adapter_file is {resume!r}, need a file such "
                f"as adapters/adapters.safetensors."
            )
    elif folder != "":
        for name in ("adapter_config.json", "adapters.safetensors"):
            if not (Path(folder) / name).is_file():
                raise ValueError(
                    f"[mlx_ane.lora] adapter_path is {folder!r}, but "
                    f"{Path(folder) / name} is missing; train adapters first, or test "
                    f"the model alone with --adapter-path ''."
                )
        _mapping(Path(folder) / "adapter_config.json", "lora")


def resume(model: nn.Module, file: str) -> None:
    """Load adapters to train on; each must be one that the model trains.

    Raises:
        ValueError: If names or shapes are not those of the model.
    """
    with explaining(f"[mlx_ane.lora] resume_adapter_file is {file!r}, need weights"):
        weights = mx.load(file)
        if not isinstance(weights, dict):
            raise ValueError("it has one array without a name")
    trained = dict(tree_flatten(model.trainable_parameters()))
    wrong = [
        f"{name} {tuple(array.shape)}"
        for name, array in weights.items()
        if name not in trained or array.shape != trained[name].shape
    ]
    if wrong or not weights:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(
            f"[mlx_ane.lora] resume_adapter_file is {file!r}, whose "
            f"{wrong[0] if wrong else 'list of arrays is empty'}{more} this run does "
            f"not train; use the model, the fine_tune_type, the num_layers and the "
            f"lora_parameters that it was trained with."
        )
    model.load_weights(list(weights.items()), strict=False)


# -- data -------------------------------------------------------------------------


def read_rows(config: types.SimpleNamespace) -> dict[str, list[Any]] | None:
    """Rows of a data folder by set, checked; None if the data is on the hub.

    Raises:
        ValueError: With the file and the line of what mlx-lm could not use.
    """
    folder = Path(config.data)
    if getattr(config, "hf_dataset", None) or not folder.exists():
        _need_datasets(config)
        return None
    if not folder.is_dir():
        raise ValueError(
            f"[mlx_ane.lora] data is {config.data!r}, a file, need a folder with "
            f"train.jsonl, valid.jsonl or test.jsonl."
        )
    rows = {}
    for name in SETS:
        file = folder / f"{name}.jsonl"
        used = config.test if name == "test" else config.train
        rows[name] = _rows(file, config) if used and file.exists() else []
        check_length(name, len(rows[name]), str(file), config)
    return rows


def _need_datasets(config: types.SimpleNamespace) -> None:
    entries = getattr(config, "hf_dataset", None)
    if importlib.util.find_spec("datasets") is None:
        what = (
            "hf_dataset" if entries else f"data is {config.data!r}, no folder here; it"
        )
        raise ValueError(
            f"[mlx_ane.lora] {what} needs the package datasets to be loaded from the "
            f"hub; name a folder with train.jsonl, or run: pip install datasets"
        )


def check_length(
    name: str, rows: int, source: str, config: types.SimpleNamespace
) -> None:
    """Refuse a set of fewer rows than a batch; only validation may be left out."""
    used = config.test if name == "test" else config.train
    if not used or (name == "valid" and not rows):
        return
    if rows < config.batch_size:
        has = f"has {rows} rows" if rows else "is missing or empty"
        raise ValueError(
            f"[mlx_ane.lora] {source} {has}, need at least the batch_size, "
            f"{config.batch_size}."
        )


def _rows(file: Path, config: types.SimpleNamespace) -> list[Any]:
    rows: list[Any] = []
    keys: dict[str, str] = {}
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"[mlx_ane.lora] {reason(error)}, need a file.") from error
    for number, line in enumerate(lines, 1):
        where = f"[mlx_ane.lora] {file}, line {number}"
        if not line.strip():
            raise ValueError(f"{where} is empty, need a JSON object; remove the line.")
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise ValueError(f"{where} is no JSON: {reason(error)}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} is {_short(row)}, need an object with keys.")
        keys = keys or _format(row, where, config)
        for key, kind in keys.items():
            _check_value(row, key, kind, where)
        rows.append(row)
    return rows


def _format(
    row: Mapping[str, Any], where: str, config: types.SimpleNamespace
) -> dict[str, str]:
    """Keys that every row needs, as mlx-lm tells them from the first row."""
    feature = {
        name: getattr(config, f"{name}_feature", default)
        for name, default in (
            ("prompt", "prompt"),
            ("completion", "completion"),
            ("chat", "messages"),
            ("text", "text"),
        )
    }
    pair = {feature["prompt"]: "content", feature["completion"]: "content"}
    if all(key in row for key in pair):
        return pair
    if feature["chat"] in row:
        return {feature["chat"]: "messages"}
    if feature["text"] not in row:
        raise ValueError(
            f"{where} has the keys {', '.join(row) or '(none)'}, need "
            f"{feature['text']}, or {feature['chat']}, or {' and '.join(pair)}."
        )
    if config.mask_prompt:
        raise ValueError(
            f"{where} has {feature['text']}, which has no prompt for mask_prompt; need "
            f"{feature['chat']}, or {' and '.join(pair)}."
        )
    return {feature["text"]: "text"}


def _check_value(row: Mapping[str, Any], key: str, kind: str, where: str) -> None:
    if key not in row:
        raise ValueError(f"{where} has no key {key!r}, which the first line has.")
    value = row[key]
    if value is None or (kind == "text" and not isinstance(value, str)):
        raise ValueError(f"{where}: {key} is {_short(value)}, need text.")
    if kind == "messages" and not (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and isinstance(v.get("role"), str) for v in value)
    ):
        raise ValueError(
            f"{where}: {key} is {_short(value)}, need a list of messages, each with "
            f"role and content."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def make_datasets(
    config: types.SimpleNamespace, rows: dict[str, list[Any]] | None, tokenizer: Any
) -> tuple[Any, Any, Any]:
    """mlx-lm's training, validation and test set, each cached.

    Raises:
        ValueError: With the file and the line that the tokenizer cannot take.
    """
    module = importlib.import_module("mlx_lm.tuner.datasets")
    if rows is None:
        what = f"[mlx_ane.lora] data {config.data!r} is no folder, and from the hub"
        if getattr(config, "hf_dataset", None):
            what = "[mlx_ane.lora] hf_dataset"
        with explaining(what):
            found = module.load_dataset(config, tokenizer)
        sources = [f"the set {name} of {what.split('] ')[1]}" for name in SETS]
    else:
        found = [
            module.create_dataset(rows[name], tokenizer, config) if rows[name] else []
            for name in SETS
        ]
        sources = [str(Path(config.data) / f"{name}.jsonl") for name in SETS]
    for name, data, source in zip(SETS, found, sources, strict=True):
        check_length(name, len(data), source, config)
    sets = list(map(_cached(module.CacheDataset), found, sources))
    for cached, own in zip(sets, (rows or {}).values(), strict=False):
        cached.try_rows(own)
    return sets[0], sets[1], sets[2]


def _cached(base: Any) -> Any:
    class Cached(base):
        """mlx-lm's cache of tokens; an error names the row."""

        def __init__(self, data: Any, source: str) -> None:
            super().__init__(data)
            self._source = source

        def __getitem__(self, i: int) -> Any:
            empty = " has an empty text" if "" in self._data[i].values() else ""
            with explaining(f"[mlx_ane.lora] {self._source}, line {i + 1}{empty}"):
                return super().__getitem__(i)

        def try_rows(self, rows: list[dict[str, Any]]) -> None:
            """The first row shows what the tokenizer lacks, an empty text no token."""
            for i, row in enumerate(rows):
                if i == 0 or "" in row.values():
                    self[i]

    return Cached
