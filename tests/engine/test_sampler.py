import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def plain_edits(sequence):
    """By definition, from scratch."""
    params, found = sequence.params, {}
    for token in {*sequence.prompt, *sequence.output, *params.logit_bias, 7, 99}:
        count = sequence.output.count(token)
        seen = count or token in sequence.prompt
        bias = params.logit_bias.get(token, 0.0) - params.frequency_penalty * count
        bias -= params.presence_penalty * bool(count)
        if len(sequence.output) < params.min_tokens and token in (7, 99):
            bias = -np.inf
        scale = params.repetition_penalty if seen else 1.0
        if scale != 1 or bias:
            found[0, token] = (round(scale, 4), round(bias, 4))
    return found


SETTINGS = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 1.5]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.25]),
        "min_tokens": st.integers(0, 6),
        "logit_bias": st.dictionaries(st.integers(0, 200), st.sampled_from([2.0, -1.0])),
    }
)
TOKENS = st.lists(st.integers(0, 200), min_size=1, max_size=150)


@given(SETTINGS, TOKENS, TOKENS, st.lists(st.integers(1, 40), max_size=9))
def test_edits_kept_from_step_to_step_are_those_from_scratch(params, prompt, output, steps):
    kept = sequence(prompt, [], stop_token_ids=[7], **params)
    for more in steps:
        kept.output += output[:more]
        output = output[more:]
        assert edits(sampling_input([kept])) == plain_edits(kept)


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
