"""verify, plan and convert(policy="auto") leave no trace, also where they fail."""

from __future__ import annotations

import collections
import dataclasses
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from test_convert import tiny_llama

import mlx_ane as ane
from mlx_ane import autotune
from mlx_ane._preserve import preserved


@dataclasses.dataclass(slots=True)
class Cache:
    """A cache that is no module, as those of mlx-lm."""

    keys: mx.array | None = None
    offset: int = 0
    total: mx.array | None = None


class Stateful(nn.Module):
    """Every kind of state that a model may change while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.norm = nn.BatchNorm(64)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(64, 64)
        self.mean = mx.zeros((64,))
        self.seen = mx.zeros((64,))
        self._private = mx.zeros((3,))
        self.in_list = [mx.zeros((2,)), {"a": mx.zeros((2,))}]
        self.in_tuple = (mx.zeros((2,)), [mx.zeros((2,))])
        self.log: list[Any] = []
        self.calls = 0
        self.cache = Cache(total=mx.zeros((2,)))
        self.namespace = SimpleNamespace(rows=mx.zeros((2,)))
        self.recent = collections.deque([mx.zeros((2,))], maxlen=2)
        self.counts = collections.OrderedDict(a=1)
        self.host = np.zeros(2)
        self.fail = False

    def __call__(self, x: mx.array) -> mx.array:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(axis=0)
        self.seen[...] = self.seen + 1.0  # in place: the same object
        self._private = self._private + mx.random.normal((3,))
        self.in_list[0] = self.in_list[0] + 1.0
        self.in_list[1]["a"] = self.in_list[1]["a"] + 1.0
        self.in_list[1]["new"] = mx.ones((1,))
        self.in_tuple[1][0] = mx.ones((2,))
        self.in_tuple[0][0] = 5.0
        self.log.append(x.shape)
        self.cache.keys, self.cache.offset = x, self.cache.offset + 1
        self.cache.total[...] = self.cache.total + 1.0
        self.namespace.rows = self.namespace.rows + 1.0
        self.recent.append(mx.ones((2,)))
        self.counts["b"] = self.counts.pop("a", 0)
        self.host += 1
        self.extra = mx.ones((1,))
        y = self.drop(self.norm(self.first(x)))
        self.drop.eval()
        if self.fail:
            raise ArithmeticError
        return self.last(y) * self.calls  # another result if it is not put back


def arrays(thing: Any, seen: dict[int, Any]) -> dict[int, mx.array]:
    """Every array that a model holds, by the id of its object."""
    if id(thing) in seen:
        return {}
    seen[id(thing)] = thing
    if isinstance(thing, mx.array):
        return {id(thing): thing}
    inner: list[Any] = []
    if isinstance(thing, dict):
        inner += thing.values()
    elif isinstance(thing, (list, tuple, collections.deque)):
        inner += thing
    if isinstance(thing, (nn.Module, SimpleNamespace)):
        inner.append(vars(thing))
    if isinstance(thing, Cache):
        inner += [thing.keys, thing.total]
    found: dict[int, mx.array] = {}
    for item in inner:
        found |= arrays(item, seen)
    return found


def picture(model: Any) -> dict[str, Any]:
    """Values and identities of a model's state, and MLX's generator."""
    found = arrays(model, {})
    return {
        "arrays": {key: np.array(value).tobytes() for key, value in found.items()},
        "random": [np.array(key).tolist() for key in mx.random.state],
        "training": [m.training for m in model.modules()],
        "frozen": [sorted(m._no_grad) for m in model.modules()],
        "keys": [list(m) for m in model.modules()],
        "classes": [type(m) for m in model.modules()],
        "modules": [id(m) for m in model.modules()],
        "python": (
            model.calls,
            list(model.log),
            model.cache.offset,
            list(model.counts.items()),
            model.host.tolist(),
            len(model.recent),
        ),
    }


def run(name: str, model: nn.Module) -> None:
    if name == "verify":
        ane.verify(model, mx.random.normal((40, 64), key=mx.random.key(1)))
    elif name == "plan":
        ane.plan(model, (40, 64))
    else:
        ane.convert(model, device="emulated", policy="auto", batch_shape=(40, 64))


@pytest.fixture(autouse=True)
def measured_anew(tmp_path, monkeypatch) -> None:
    """Layers are measured, in no time, whatever this machine has stored."""
    own = SimpleNamespace(cache_dir=tmp_path)
    monkeypatch.setattr(autotune, "settings", own)
    monkeypatch.setattr(autotune, "SECONDS", 0.0)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["verify", "plan", "convert"])
def test_a_model_that_changes_itself(name: str, fails: bool) -> None:
    model = Stateful()
    mx.eval(model.state)
    if name == "verify":
        ane.convert(model, device="cpu")
    model.fail = fails
    held = arrays(model, {})  # so that no id is used again
    before = picture(model)
    if fails:
        with pytest.raises(ArithmeticError):
            run(name, model)
    else:
        run(name, model)
    after = picture(model)
    if name == "convert":
        kinds = before.pop("classes"), after.pop("classes")
        changed = [a for a, b in zip(*kinds, strict=True) if a is not b]
        assert changed == ([] if fails else [nn.Linear, nn.Linear])
    assert after == before
    assert held


def test_verify_runs_each_time_from_the_same_state() -> None:
    # The output is multiplied by the number of calls so far.
    model = Stateful()
    ane.convert(model, device="cpu")
    report = ane.verify(model, mx.random.normal((40, 64)))
    assert report.passed, str(report)


def test_a_cache_among_the_inputs_is_left_alone() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def __call__(self, x: mx.array, cache: Cache) -> mx.array:
            keys = x if cache.keys is None else mx.concatenate([cache.keys, x])
            cache.keys, cache.offset = keys, cache.offset + len(x)
            return self.layer(keys)

    model, cache = Decoder(), Cache()
    ane.convert(model, device="cpu")
    report = ane.verify(model, mx.random.normal((40, 64)), cache)
    assert report.passed, str(report)
    assert cache == Cache()


@pytest.mark.parametrize("name", ["verify", "plan", "convert"])
def test_another_default_stream_and_device(name: str) -> None:
    model = tiny_llama()
    tokens = mx.arange(40)[None]
    if name == "verify":
        ane.convert(model, device="cpu")
    before = dict(tree_flatten(model.parameters()))
    mx.random.normal((2,))  # the generator's next key is not computed yet
    with mx.stream(mx.new_stream(mx.cpu)):
        state = [np.array(key).tolist() for key in mx.random.state]
        if name == "verify":
            ane.verify(model, tokens)
        elif name == "plan":
            ane.plan(model, tokens.shape)
        else:
            ane.convert(
                model, device="emulated", policy="auto", batch_shape=tokens.shape
            )
    assert [np.array(key).tolist() for key in mx.random.state] == state
    after = dict(tree_flatten(model.parameters()))
    assert all(after[path] is array for path, array in before.items())


def test_preserved_can_rewind_many_times() -> None:
    model = nn.Sequential(nn.Dropout(0.5))
    x = mx.ones((64,))
    with preserved(model) as rewind:
        first = model(x)
        rewind()
        assert mx.array_equal(model(x), first)
        assert not mx.array_equal(model(x), first)
        rewind()
        assert mx.array_equal(model(x), first)
    assert mx.array_equal(model(x), first)


def test_objects_of_python_itself_are_not_touched() -> None:
    import logging

    model = nn.Sequential(nn.Linear(4, 4))
    model.logger = logging.getLogger("test_preserve")
    handler = logging.NullHandler()
    with preserved(model):
        model.logger.addHandler(handler)
    assert handler in model.logger.handlers
