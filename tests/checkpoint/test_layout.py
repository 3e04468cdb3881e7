import numpy as np
import pytest

from checkpoint.tools import (
    as_paddle,
    rules,
    save,
    tensors,
)
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import plan_loading
from qinfer.core.errors import BadCheckpoint, BrokenPlugin
from qinfer.core.types import WeightRule


def written(folder, arrays):
    save(folder / "model.safetensors", arrays)
    return Checkpoint(folder)


def refused(folder, arrays, these=None):
    with pytest.raises(BadCheckpoint) as caught:
        plan_loading(written(folder, arrays), these or rules())
    return str(caught.value)


def test_every_kind_of_misfit_in_one_message(tmp_path):
    there = tensors()
    del there["model.k_proj.weight"]
    there["model.down_proj.weight"] = np.ones((8, 13), np.float32)
    there["model.norm.weight"] = np.ones(8, np.int64)
    there["model.extra"] = np.ones(3, np.float32)
    there["model.rotary.inv_freq"] = np.ones(3, np.float32)
    message = refused(tmp_path, there)
    assert "(4 problems)" in message
    assert "missing      model.k_proj.weight: expected [4, 8]" in message
    assert "wrong shape  model.down_proj.weight: found [8, 13], expected [8, 12]" in message
    assert "wrong dtype  model.norm.weight: found I64" in message
    assert "surplus      model.extra" in message


def test_missing_tensors_go_by_the_names_used_elsewhere(tmp_path):
    there = as_paddle(tensors())
    del there["qwen2.norm.weight"]
    assert "missing      qwen2.norm.weight: expected [8]" in refused(tmp_path, there)


def test_mixed_layouts(tmp_path):
    there = tensors()
    there["model.x.weight"] = np.ones((3, 5), np.float32)
    rule = WeightRule(target="x.weight", source=("model.x.weight",), shape=(5, 3), linear=True)
    message = refused(tmp_path, there, [*rules(), rule])
    assert "found [3, 5], expected [5, 3] (transposed, unlike the others)" in message


def test_long_lists_are_cut(tmp_path):
    there = tensors() | {f"model.extra{i}": np.ones(1, np.float32) for i in range(50)}
    message = refused(tmp_path, there)
    assert "(50 problems)" in message
    assert "and 10 more" in message
    assert len(message.splitlines()) < 45


def test_alternatives_in_order(tmp_path):
    there = {"first": np.ones(2, np.float32), "second": np.ones(2, np.float32)}
    pair = [WeightRule(target="t", source=(name,), shape=(2,)) for name in ("first", "second")]
    assert "surplus      second" in refused(tmp_path, there, pair)
    del there["first"]
    plan = plan_loading(written(tmp_path, there), pair)
    assert plan.picks["t"].rule.source == ("second",)


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "fuse", "sizes": (1, 1), "shape": (3,), "source": ("a", "b")},
        {"op": "fuse", "sizes": (3,), "shape": (3,), "source": ("a", "b")},
        {"op": "split", "sizes": (3,), "start": 2, "shape": (2,)},
        {"op": "copy", "source": ("a", "b"), "shape": (2,)},
        {"shape": (2,), "linear": True},
        {"shape": (0,)},
        {"shape": (2,), "target": ""},
        {"source": (), "shape": (2,)},
    ],
)
def test_rules_that_contradict_themselves(tmp_path, fields):
    rule = WeightRule(**{"target": "t", "source": ("a",), **fields})
    with pytest.raises(BrokenPlugin, match="weight rule"):
        plan_loading(written(tmp_path, {"a": np.ones(2, np.float32)}), [rule])
