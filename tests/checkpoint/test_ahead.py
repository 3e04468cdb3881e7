"""Reading ahead changes when a parameter is read, and nothing else."""

import numpy as np
import pytest

from checkpoint.tools import rules, save, tensors
from qinfer.core.checkpoint.ahead import Ahead
from qinfer.core.checkpoint.assemble import assemble
from qinfer.core.checkpoint.files import Checkpoint
from qinfer.core.checkpoint.layout import plan_loading
from qinfer.core.errors import BadCheckpoint


def opened(folder, there):
    save(folder / "model.safetensors", there)
    checkpoint = Checkpoint(folder)
    return checkpoint, plan_loading(checkpoint, rules()).picks


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("turn", [1, -1], ids=["in order", "backwards"])
def test_parameters_are_those_of_assemble(tmp_path, threads, turn):
    checkpoint, picks = opened(tmp_path, tensors())
    ahead = Ahead(checkpoint, picks, threads)
    for target, pick in list(picks.items())[::turn]:
        np.testing.assert_array_equal(ahead.get(target, pick), assemble(checkpoint, pick))
    ahead.close()


def test_an_error_comes_where_the_parameter_is_asked_for(tmp_path):
    there = tensors()
    there["model.down_proj.weight"][2, 3] = np.nan
    checkpoint, picks = opened(tmp_path, there)
    ahead = Ahead(checkpoint, picks, 3)
    for target, pick in picks.items():
        if target == "down.weight":
            with pytest.raises(BadCheckpoint, match=r"down_proj.weight holds NaN"):
                ahead.get(target, pick)
        else:
            ahead.get(target, pick)
    ahead.close()


def test_no_more_is_held_than_so_many_bytes(tmp_path, monkeypatch):
    checkpoint, picks = opened(tmp_path, tensors())
    begun = []
    module = "qinfer.core.checkpoint.ahead"
    monkeypatch.setattr(f"{module}.assemble", lambda _, pick: begun.append(pick) or pick.rule)
    most = max(pick.nbytes for pick in picks.values())
    monkeypatch.setattr(f"{module}.MOST_BYTES", most)
    ahead, asked = Ahead(checkpoint, picks, 2), 0
    for target, pick in picks.items():
        ahead.get(target, pick)
        asked += pick.nbytes
        assert sum(pick.nbytes for pick in begun) <= asked + 2 * most
    ahead.close()
    assert len(begun) == len(picks)  # none twice
