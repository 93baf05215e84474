"""`mlx-ane lora`: parity with mlx_lm.lora, adapters both ways, options, errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from fine_tuning import (  # noqa: F401
    ITERS,
    KINDS,
    Plain,
    data,
    eager,
    lora,
    mlx_lm_lora,
    models,
    options,
    plain,
)
from mlx import nn

import mlx_ane as ane
from mlx_ane import cli
from mlx_ane.lora import words


def kept(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Names, shapes and dtypes of an adapter file."""
    arrays = mx.load(str(folder / "adapters.safetensors"))
    return {name: (a.shape, a.dtype) for name, a in arrays.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_same_losses_as_mlx_lm(
    kind: str, device: str, models, data, plain, tmp_path, capsys
) -> None:
    theirs, folder = plain(kind)
    flags = options(kind, models, data, tmp_path)
    found = lora(capsys, *flags, "--device", device)
    losses = [info["train_loss"] for info in found["train"]]
    assert losses == pytest.approx(theirs.train, rel=5e-3)
    assert found["validation"][-1]["val_loss"] == pytest.approx(
        theirs.validation, rel=5e-3
    )
    assert kept(tmp_path) == kept(folder)
    counts = found["counters"]
    assert not {k: n for k, n in counts.items() if k.startswith("fallback_") and n}
    # Nobody asks for the gradient of a frozen weight: only of lora_a and lora_b.
    adapters = 2 * 14 * ITERS if kind in ("lora", "qlora") else 0
    assert counts["gemm_dw"] == adapters or kind == "full"
    assert counts["adam_steps"] == ITERS
    assert all(info["fallbacks"] == 0 for info in found["train"])
    layers = found["placement"]["converted"]
    calls = {layer["path"]: layer["calls"] for layer in layers}
    if kind == "dora":
        skipped = {s["path"]: s["reason"] for s in found["placement"]["skipped"]}
        base = "model.layers.0.self_attn.q_proj.linear"
        assert skipped[base].startswith("DoRALinear multiplies with the weight")
    else:
        assert min(calls.values()) >= ITERS
    if kind == "qlora":
        kinds = {layer["kind"] for layer in layers}
        assert kinds == {"ANEQuantizedLinear", "ANEQuantizedEmbedding"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [[], ["--grad-checkpoint"]], ids=["", "checkpoint"])
def test_same_losses_by_blocks(
    kind: str, more: list[str], models, data, plain, tmp_path, capsys
) -> None:
    theirs, folder = plain(kind)
    flags = [*options(kind, models, data, tmp_path), *more, "--device", "emulated"]
    found = lora(capsys, *flags, "--granularity", "block")
    losses = [info["train_loss"] for info in found["train"]]
    assert losses == pytest.approx(theirs.train, rel=5e-3)
    assert kept(tmp_path) == kept(folder)
    counts = found["counters"]
    assert not {k: n for k, n in counts.items() if k.startswith("fallback_") and n}
    blocks = [
        row
        for row in found["placement"]["converted"]
        if row["kind"] == "ANETransformerBlock"
    ]
    assert blocks
    assert all(row["on_device"] == row["calls"] >= ITERS for row in blocks)


def loss_of(model: nn.Module, data: Path, folder: Path) -> float:
    """Loss of a model over the test set, by mlx-lm alone."""
    _, tokenizer = mlx_lm_lora.load(str(folder))
    arguments = types.SimpleNamespace(data=str(data), train=False, test=True)
    _, _, test_set = mlx_lm_lora.load_dataset(arguments, tokenizer)
    loss: float = mlx_lm_lora.evaluate(model, mlx_lm_lora.CacheDataset(test_set), 4, -1)
    return loss


def test_adapters_load_in_plain_mlx_lm(models, data, tmp_path, capsys) -> None:
    flags = options("lora", models, data, tmp_path)
    found = lora(capsys, *flags, "--device", "cpu", "--test")
    model, _ = mlx_lm_lora.load(str(models[False]))
    mlx_lm_lora.load_adapters(model, str(tmp_path))
    assert found["test"] == pytest.approx(loss_of(model, data, models[False]), rel=1e-5)


def test_their_adapters_load_here(models, data, plain, tmp_path, capsys) -> None:
    theirs, folder = plain("lora")
    expected = pytest.approx(loss_of(theirs.model, data, models[False]), rel=1e-5)
    flags = options("lora", models, data, folder)
    flags.remove("--train")
    found = lora(capsys, *flags, "--device", "cpu", "--test")
    assert found["train"] == []
    assert found["test"] == expected
    # Resumed with a learning rate of 0, the adapters stay what they were.
    flags = options("lora", models, data, tmp_path)
    flags += ["--iters", "1", "--learning-rate", "0", "--device", "cpu", "--test"]
    file = folder / "adapters.safetensors"
    found = lora(capsys, *flags, "--resume-adapter-file", str(file))
    assert found["test"] == expected


def test_prompt_masking_accumulation_and_checkpointing(
    models, tmp_path, capsys, monkeypatch
) -> None:
    from mlx_lm.models.llama import TransformerBlock

    # grad_checkpoint patches the class: put the method back afterwards.
    monkeypatch.setattr(TransformerBlock, "__call__", TransformerBlock.__call__)
    row = {"prompt": "What is two and two?", "completion": "Four, I would say."}
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    flags = options("lora", models, tmp_path, tmp_path / "a")
    flags += ["--mask-prompt", "--grad-accumulation-steps", "2", "--grad-checkpoint"]
    theirs = Plain(flags)
    found = lora(capsys, *flags, "--device", "emulated", "--verify")
    losses = [info["train_loss"] for info in found["train"]]
    assert losses == pytest.approx(theirs.train, rel=5e-3)
    assert found["counters"]["adam_steps"] == ITERS // 2


@pytest.mark.parametrize("attention", ["fused", "mlx"])
def test_attention_is_a_choice(
    attention: str, models, data, tmp_path, capsys, monkeypatch
) -> None:
    from mlx_ane import fast

    calls = []
    ours, theirs = fast.scaled_dot_product_attention, mx.fast
    monkeypatch.setattr(
        fast,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or ours(*args, **kwargs),
    )
    before = theirs.scaled_dot_product_attention
    flags = [*options("lora", models, data, tmp_path), "--iters", "1"]
    found = lora(capsys, *flags, "--device", "cpu", "--attention", attention)
    assert bool(calls) == (attention == "fused")
    rows = found["placement"]["attention"]
    assert [row["device"] for row in rows] == ["cpu"] * 2 * (attention == "fused")
    assert theirs.scaled_dot_product_attention is before


def test_low_rank_products_run_on_the_blas(models, data, tmp_path, capsys) -> None:
    from mlx_lm.tuner.lora import LoRALinear

    before = LoRALinear.__call__
    flags = [*options("lora", models, data, tmp_path), "--iters", "1"]
    found = lora(capsys, *flags, "--device", "emulated")
    counts = found["counters"]
    # Two in each of 14 layers, in a step and in a batch of validation.
    assert counts["placed_device_cpu"] == 2 * 14 * 2
    assert LoRALinear.__call__ is before


@pytest.fixture
def config(models, data, tmp_path):
    """config(content, *flags): the options that the command would run with."""
    import argparse

    from mlx_ane.commands import lora as command

    def read(content: str, *flags: str) -> types.SimpleNamespace:
        file = tmp_path / "config.yaml"
        file.write_text(content)
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.configure(parser.parse_args(["-c", str(file), *flags]))

    return read


def test_flags_before_file_before_defaults(config) -> None:
    found = config(
        "iters: 7\nseed: 3\nlearning_rate: 1e-5\n"
        "ane:\n  device: cpu\n  policy: frozen\n  fused: false\n",
        *("--seed", "4", "--policy", "all"),
    )
    assert (found.iters, found.seed, found.batch_size) == (7, 4, 4)
    assert found.learning_rate == 1e-5
    assert found.ane == {
        "device": "cpu",
        "policy": "all",
        "objective": "time",
        "precision": None,
        "predicate": None,
        "fused": False,
        "attention": None,
        "granularity": "layer",
        "fallback": None,
        "verify": False,
        "report": "short",
        "plot": None,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "ane:\n  devices: cpu\n",
            "line 2: ane.devices is unknown, need one of device,",
        ),
        ("ane: cpu\n", "line 1: ane is 'cpu', need options with values"),
        ("- 1\n", "is [1], need options with values"),
        ("a: [1\n", "is no YAML"),
    ],
)
def test_bad_files_are_refused(config, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"\[mlx_ane\.lora\]") as error:
        config(content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_predicate_policy_and_optimizer(models, data, tmp_path, capsys) -> None:
    flags = [*options("full", models, data, tmp_path), "--iters", "2"]
    flags += ["--device", "emulated", "--policy", "frozen", "--no-fused"]
    found = lora(capsys, *flags, "--predicate", "q_proj$", r"layers\.1\.mlp")
    layers = found["placement"]["converted"]
    assert [layer["path"] for layer in layers] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        *(f"model.layers.1.mlp.{p}_proj" for p in ("gate", "down", "up")),
    ]
    assert {layer["device"] for layer in layers} == {"cpu"}  # all are trained
    assert sum(layer["on_device"] for layer in layers) == 0
    assert found["counters"]["adam_steps"] == 0


def test_precision_reaches_the_layers(models, data, plain, tmp_path, capsys) -> None:
    flags = [*options("lora", models, data, tmp_path), "--device", "emulated"]
    losses = {}
    for precision in ("default", "high", "exact"):
        ane.reset_counters()
        found = lora(capsys, *flags, "--iters", "1", "--precision", precision)
        losses[precision] = found["train"][0]["train_loss"]
        on_device = found["counters"]["device_calls"] > 0
        assert on_device == (precision != "exact"), precision
    assert losses["exact"] == pytest.approx(plain("lora")[0].train[0], rel=1e-6)
    assert len(set(losses.values())) == 3


@pytest.mark.parametrize("fallback", ["error", "warn", "allow"])
def test_fallback_is_a_choice(fallback: str, models, data, tmp_path, capfd) -> None:
    flags = [*options("lora", models, data, tmp_path), "--iters", "1", "--json"]
    flags += ["--device", "emulated", "--fallback", fallback]
    with ane.emulated.faults("evaluate_false:count=1"):
        status = cli.main(["lora", *flags])
    out, err = capfd.readouterr()
    assert status == (1 if fallback == "error" else 0)
    if fallback == "error":
        assert "mlx-ane lora: " in err
        assert not (tmp_path / "adapters.safetensors").exists()
        return
    assert ("recomputed" in err) == (fallback == "warn")
    counts = json.loads(out)["counters"]
    assert sum(n for k, n in counts.items() if k.startswith("fallback_")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "npu"], "device is 'npu', need one of"),
        (["--predicate", "("], "predicate: '(' is no regular expression"),
        (["--num-layers", "9"], "num_layers is 9, but the model has 2 layers"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_errors_are_one_line(
    flags: list[str], message: str, models, data, tmp_path, capsys
) -> None:
    assert cli.main(["lora", *options("lora", models, data, tmp_path), *flags]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mlx-ane lora: ")
    assert message in error


def test_neither_train_nor_test(capsys) -> None:
    assert cli.main(["lora", "--model", "x"]) == 1
    assert "neither --train nor --test" in capsys.readouterr().err


def doubled(self, x: mx.array) -> mx.array:
    return self.linear(x) + 2.0 * self.scale * ((x @ self.lora_a) @ self.lora_b)


@pytest.mark.parametrize("wrong", ["attention", "low rank", "loss"])
def test_verify_stops_what_would_train_wrongly(
    wrong: str, device: str, models, data, tmp_path, capsys, monkeypatch
) -> None:
    from mlx_ane.lora.layers import ANELoRALinear

    model = models[False]
    if wrong == "attention":
        real = ane.fast.scaled_dot_product_attention
        monkeypatch.setattr(
            ane.fast,
            "scaled_dot_product_attention",
            lambda *args, **kwargs: 3.0 * real(*args, **kwargs),
        )
    elif wrong == "low rank":
        monkeypatch.setattr(ANELoRALinear, "__call__", doubled)
    else:
        model = tmp_path / "model"
        shutil.copytree(models[False], model)
        weights = mx.load(str(model / "model.safetensors"))
        weights["model.norm.weight"] *= mx.nan
        mx.save_safetensors(str(model / "model.safetensors"), weights)
    flags = [*options("lora", models, data, tmp_path / "out"), "--model", str(model)]
    assert cli.main(["lora", *flags, "--device", device, "--verify"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out.splitlines()[-1]
    assert "not shown to be plain MLX on the first batch" in err
    assert not (tmp_path / "out" / "adapters.safetensors").exists()


def test_verify_of_what_ran_elsewhere_does_not_pass(
    engine: str, models, data, tmp_path, capsys
) -> None:
    flags = [*options("lora", models, data, tmp_path), "--device", engine, "--verify"]
    flags += ["--batch-size", "1", "--max-seq-length", "16"]
    assert cli.main(["lora", *flags]) == 1
    out, err = capsys.readouterr()
    assert "few_rows" in out and "PASS" not in out
    assert "not shown to be plain MLX" in err


def test_unknown_keys_are_one_warning(config, capsys) -> None:
    found = config(
        "iterz: 5\nnote: 2026-01-01\nlora_parameters:\n"
        "  {rank: 4, scale: 1.0, dropout: 0.0, alfa: 3, key: []}\n"
    )
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "config.yaml has keys that are ignored: iterz (line 1" in err
    assert "did you mean 'iters'?" in err and "note (line 2" in err
    assert "lora_parameters.key (line 4, did you mean 'keys'?)" in err
    assert not hasattr(found, "iterz")
    assert set(found.lora_parameters) == {"rank", "scale", "dropout"}


def test_values_of_files_are_those_of_flags(config, capsys) -> None:
    found = config(
        "iters: 1e3\nlearning_rate: 1e-5\noptimizer: AdamW\nmask_prompt: off\n"
        "clear_cache_threshold: 2GB\ntrust_remote_code: true\nval_batches: null\n"
        "optimizer_config: {adamw: {state_dtype: float32, betas: [0.9, 0.95]}}\n"
        "lr_schedule: {name: linear_schedule, arguments: [0, 1e-5, 10]}\n"
        "hf_dataset: [{path: a, text_feature: b}]\ntext_feature: c\n"
    )
    assert (found.iters, type(found.iters)) == (1000, int)
    assert (found.learning_rate, found.optimizer) == (1e-5, "adamw")
    assert found.mask_prompt is False and found.trust_remote_code is True
    assert (found.clear_cache_threshold, found.val_batches) == (2 * 10**9, 25)
    assert found.optimizer_config["adamw"]["state_dtype"] == "float32"
    assert found.lr_schedule["arguments"] == [0, 1e-5, 10]
    assert found.hf_dataset == [{"path": "a", "text_feature": "b"}]
    assert found.text_feature == "c"
    assert capsys.readouterr().err == ""


def test_moments_have_the_dtype_of_the_file(
    models, data, tmp_path, capsys, monkeypatch
) -> None:
    dtypes = []
    real = ane.optimizers.AdamW.init_single

    def init_single(self, parameter, state) -> None:
        real(self, parameter, state)
        dtypes.append(state["m"].dtype)

    monkeypatch.setattr(ane.optimizers.AdamW, "init_single", init_single)
    file = tmp_path / "a.yaml"
    file.write_text(
        "optimizer: adamw\nval_batches: 0\n"
        "optimizer_config: {adamw: {state_dtype: bfloat16}}\n"
    )
    flags = [*options("lora", models, data, tmp_path), "--iters", "1", "-c", str(file)]
    found = lora(capsys, *flags, "--device", "cpu")
    assert set(dtypes) == {mx.bfloat16}
    assert found["validation"] == []  # none was asked for
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["optimizer_config"]["adamw"] == {"state_dtype": "bfloat16"}


def test_json_has_no_nan(models, data, tmp_path, capsys) -> None:
    flags = [*options("lora", models, data, tmp_path), "--learning-rate", "1e30"]
    assert cli.main(["lora", *flags, "--device", "cpu", "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert found["train"][-1]["train_loss"] is None


def interrupted(*args: Any) -> float:
    raise KeyboardInterrupt


def test_an_interruption_says_how_to_go_on(
    models, data, tmp_path, capsys, monkeypatch
) -> None:
    from mlx_ane.commands import lora as command

    real = command.Reports.on_train_loss_report

    def report(self, info: dict[str, Any]) -> None:
        real(self, info)
        if info["iteration"] == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.Reports, "on_train_loss_report", report)
    (tmp_path / "0000009_adapters.safetensors").touch()  # an earlier run's
    os.utime(tmp_path / "0000009_adapters.safetensors", (0, 0))
    flags = [*options("lora", models, data, tmp_path), "--device", "cpu"]
    flags += ["--save-every", "2"]
    stop = 1
    assert cli.main(["lora", *flags]) == 130
    assert "nothing is saved, as save_every is 2" in capsys.readouterr().err
    stop = 3
    assert cli.main(["lora", *flags]) == 130
    what, again = capsys.readouterr().err.strip().splitlines()[-2:]
    file = tmp_path / "0000002_adapters.safetensors"
    assert what.startswith(f"mlx-ane lora: interrupted; {file} has iteration 2 of 6")
    assert again.endswith(f"--resume-adapter-file {file} --iters 4")
    command_line = shlex.split(again.removeprefix("to go on: "))
    assert command_line[:2] == ["mlx-ane", "lora"]
    stop = None
    assert cli.main(command_line[1:]) == 0
    # In the test after training, the weights are there.
    monkeypatch.setattr(command, "evaluate", interrupted)
    assert cli.main(["lora", *flags, "--test"]) == 130
    assert f"the trained weights are in {tmp_path}" in capsys.readouterr().err


# -- what a person reads ----------------------------------------------------------


def spoken(capsys, *flags: str) -> tuple[str, str]:
    """What `mlx-ane lora` prints, each sentence in one line: stdout and stderr."""
    capsys.readouterr()
    assert cli.main(["lora", *flags]) == 0
    out, err = capsys.readouterr()
    return out.replace("\n  ", " "), err


def test_it_speaks_before_and_after_training(models, data, tmp_path, capsys) -> None:
    flags = [*options("lora", models, data, tmp_path), "--device", "emulated"]
    out, err = spoken(capsys, *flags, "--granularity", "auto")
    begin, _, end = out.partition("Trainable parameters")
    lines = begin.splitlines()
    assert lines[0] == (
        "device emulated: 2 blocks, 15 of 15 layers; lora trains 0.0148 M parameters"
    )
    assert lines[1].startswith("granularity 'block': a step on M4 is estimated at ")
    assert re.fullmatch(
        r"an M4 would take \S+ \[\S+ - \S+\] ms a step of 4 x \d+ tokens "
        r"\(an estimate\)",
        lines[2],
    )
    assert "warning" not in err
    assert re.search(
        rf"^{ITERS} iterations in \S+ s, \d+ tokens/s, training loss \S+ to \S+, "
        r"validation loss \S+ to \S+$",
        end,
        re.M,
    )
    assert f"adapters: {tmp_path / 'adapters.safetensors'}" in end
    command = re.search(r"^try them: (.*)$", end, re.M).group(1)
    assert shlex.split(command) == [
        *("mlx_lm.generate", "--model", str(models[False])),
        *("--adapter-path", str(tmp_path), "--prompt", "Hello"),
    ]
    lead = r"^2 blocks, 15 of 15 layers, 100 % of calls on emulated, 0 fallbacks, "
    assert re.search(lead + r"\d+ % of time elsewhere$", end, re.M)


@pytest.mark.parametrize(
    ("kind", "flags", "warning"),
    [
        (
            "lora",
            ["--predicate", "up_prj"],
            "nothing is on device emulated: "
            "--predicate up_prj matches no path, such as model.embed_tokens",
        ),
        (
            "dora",
            [],
            "only 1 of 15 layers is on device emulated: "
            "DoRALinear multiplies with the weight of its linear itself",
        ),
        (
            "qlora",
            ["--precision", "high"],
            "nothing is on device emulated: "
            "precision 'high' is for weights that are not quantised",
        ),
        (
            "lora",
            ["--precision", "exact"],
            "nothing is on device emulated: precision 'exact' is fp32 on the BLAS",
        ),
    ],
    ids=["predicate", "dora", "high", "exact"],
)
def test_it_warns_where_nothing_is_on_the_device(
    kind, flags, warning: str, models, data, tmp_path, capsys
) -> None:
    given = [*options(kind, models, data, tmp_path), "--device", "emulated"]
    given[given.index("--iters") + 1] = "1"
    out, err = spoken(capsys, *given, *flags)
    assert f"mlx-ane lora: warning: {warning}\n" in err
    assert "would take" not in out or kind == "dora"


def test_validation_and_training_are_at_the_same_iterations(
    models, data, tmp_path, capsys
) -> None:
    flags = options("lora", models, data, tmp_path)
    flags += ["--device", "cpu", "--steps-per-eval", "2"]
    file = tmp_path / "loss.png"
    pytest.importorskip("matplotlib")
    found = lora(capsys, *flags, "--plot", str(file))
    assert [i["iteration"] for i in found["train"]] == [1, 2, 3, 4, 5, 6]
    assert [i["iteration"] for i in found["validation"]] == [1, 2, 4, 6]
    assert found["adapters"] == str(tmp_path / "adapters.safetensors")
    assert file.read_bytes()[:4] == b"\x89PNG"
    for wrong, need in [
        ("loss.txt", "a file that ends with .png"),
        ("no/x.png", "which"),
    ]:
        assert cli.main(["lora", *flags, "--plot", wrong]) == 1
        assert need in capsys.readouterr().err


def test_the_report_can_be_full(models, data, tmp_path, capsys) -> None:
    flags = [*options("lora", models, data, tmp_path), "--device", "cpu"]
    flags[flags.index("--iters") + 1] = "1"
    short, _ = spoken(capsys, *flags)
    full, _ = spoken(capsys, *flags, "--report", "full")
    path = "model.layers.1.mlp.up_proj.linear"
    assert path in full and path not in short
    assert "gate_proj, up_proj x 4" in short


def test_tokens_per_second_are_those_of_all_reports() -> None:
    reports = [
        {"trained_tokens": 100, "tokens_per_second": 100.0},
        {"trained_tokens": 300, "tokens_per_second": 50.0},
    ]
    assert words.tokens_per_second(reports) == 300 / (1 + 4)
