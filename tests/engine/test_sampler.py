import numpy as np
import pytest

from qinfer.core.engine.sampler import sampling_input, uniform
from qinfer.core.engine.sequence import Sequence
from qinfer.core.params import SamplingParams


def sequence(prompt, output, **params):
    return Sequence(
        request_id=1,
        index=0,
        prompt=prompt,
        params=SamplingParams(**params).with_defaults({}),
        seed=7,
        max_tokens=10,
        eos_token_ids=frozenset([99]),
        output=output,
    )


def edits(result):
    return {
        (int(r), int(t)): (round(float(s), 4), round(float(b), 4))
        for r, t, s, b in zip(
            result.edit_rows, result.edit_tokens, result.edit_scale, result.edit_bias, strict=True
        )
    }


def test_penalties_by_openai_and_ctrl_definitions():
    got = sampling_input(
        [
            sequence([1, 2], [2, 3, 3], repetition_penalty=1.5),
            sequence([1, 2], [2, 3, 3], presence_penalty=0.5, frequency_penalty=0.25),
            sequence([5], [], logit_bias={4: -100.0}),
        ]
    )
    assert edits(got) == {
        (0, 1): (1.5, 0),
        (0, 2): (1.5, 0),
        (0, 3): (1.5, 0),
        (1, 2): (1, -0.75),
        (1, 3): (1, -1.0),
        (2, 4): (1, -100),
    }


def test_no_edits_without_penalties():
    assert sampling_input([sequence([1], [2])]).edit_rows.size == 0


def test_min_tokens_forbids_every_end():
    early = sampling_input([sequence([1], [2], min_tokens=2, stop_token_ids=[7])])
    assert edits(early) == {(0, 7): (1, -np.inf), (0, 99): (1, -np.inf)}
    assert sampling_input([sequence([1], [2, 2], min_tokens=2)]).edit_rows.size == 0


def test_defaults_are_greedy_and_off():
    got = sampling_input([sequence([1], [])])
    assert got.temperature.tolist() == [0]
    assert (got.top_k.tolist(), got.top_p.tolist(), got.min_p.tolist()) == ([0], [1], [0])
    assert got.num_logprobs == -1


def test_a_vanishing_temperature_is_greedy():
    assert sampling_input([sequence([1], [], temperature=1e-9)]).temperature[0] == 0


def test_uniform_depends_on_seed_and_position_alone():
    assert uniform(7, 3) == uniform(7, 3)
    numbers = np.array([uniform(seed, at) for seed in range(50) for at in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == len(numbers)
    # Kolmogorov-Smirnov against the uniform distribution, at the 0.1 % level.
    ordered = np.sort(numbers)
    gap = np.abs(ordered - np.arange(len(ordered)) / len(ordered)).max()
    assert gap < 1.95 / np.sqrt(len(ordered))


@pytest.mark.parametrize("count", [None, 0, 3])
def test_the_largest_logprob_count_is_asked_for(count):
    got = sampling_input([sequence([1], [], logprobs=count), sequence([1], [])])
    assert got.num_logprobs == (-1 if count is None else count)
