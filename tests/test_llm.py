"""The Python API over a tiny model: what a request gets must not depend on its company."""

import numpy as np
import pytest

from goldens import tiny
from qinfer import LLM, SamplingParams
from qinfer.core.errors import BadInput, InvalidParams, Unsupported, UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
TEXTS = [f"prompt number {i} " + "abc def " * (i % 7) for i in range(17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "model", tiny.CASES["gqa"])


def open_llm(folder, **options):
    return LLM(str(folder), **{"kv_cache_memory": 32 << 20} | options)


@pytest.fixture(scope="module")
def llm(folder):
    with open_llm(folder) as opened:
        yield opened


def tokens(output):
    return [completion.token_ids for completion in output.completions]


@pytest.fixture(scope="module")
def alone(llm):
    return [tokens(llm.generate(text, GREEDY)[0]) for text in TEXTS]


def test_a_batch_of_17_gives_what_each_prompt_gives_alone(llm, alone):
    assert [tokens(output) for output in llm.generate(TEXTS, GREEDY)] == alone


@pytest.mark.parametrize("budget", [1, 5, 33])
def test_chunked_prefill_changes_nothing(folder, alone, budget):
    with open_llm(folder, max_batch_tokens=budget) as llm:
        assert [tokens(output) for output in llm.generate(TEXTS, GREEDY)] == alone


def test_preemption_changes_nothing(folder, alone):
    per_block = 16 * 3 * 2 * 2 * 16 * 4  # slots, layers, k and v, heads, dim, bytes
    with open_llm(folder, kv_cache_memory=14 * per_block, max_model_len=112) as llm:
        outputs = llm.generate(TEXTS, GREEDY)
        assert [tokens(output) for output in outputs] == alone
        preempted = sum(stats.preemptions for output in outputs for stats in output.stats)
        assert preempted > 0
        assert llm.engine.pool.num_free == 14


def test_a_seed_gives_the_same_text_in_any_company(llm):
    params = SamplingParams(temperature=1.5, seed=5, max_tokens=20, ignore_eos=True)
    lone = tokens(llm.generate(TEXTS[3], params)[0])
    mixed = [params if i == 3 else SamplingParams(temperature=2, max_tokens=9) for i in range(17)]
    assert tokens(llm.generate(TEXTS, mixed)[3]) == lone
    other = SamplingParams(temperature=1.5, seed=6, max_tokens=20, ignore_eos=True)
    assert tokens(llm.generate(TEXTS[3], other)[0]) != lone


def test_n_answers_differ_and_repeat_with_the_seed(llm):
    params = SamplingParams(temperature=1.5, seed=5, n=4, max_tokens=12, ignore_eos=True)
    first, second = (llm.generate(TEXTS[6], params)[0] for _ in range(2))
    assert tokens(first) == tokens(second)
    assert len(set(tokens(first))) == 4
    assert first.usage.completion_tokens == 48
    single = SamplingParams(temperature=1.5, seed=6, max_tokens=12, ignore_eos=True)
    assert tokens(llm.generate(TEXTS[6], single)[0])[0] == tokens(first)[1]


def test_streamed_pieces_add_up(llm):
    whole = llm.generate(TEXTS[0], GREEDY)[0]
    deltas = list(llm.stream(TEXTS[0], GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert tuple(t for delta in deltas for t in delta.token_ids) == tokens(whole)[0]
    assert [delta.finish_reason for delta in deltas] == [None] * 19 + ["length"]
    assert deltas[-1].usage.completion_tokens == 20


def test_two_streams_read_by_turns(llm, alone):
    streams = [llm.stream(TEXTS[i], GREEDY) for i in range(2)]
    got = [[], []]
    for _ in range(20):
        for i, stream in enumerate(streams):
            got[i].extend(next(stream).token_ids)
    assert [[tuple(ids)] for ids in got] == alone[:2]


def test_an_abandoned_stream_gives_its_blocks_back(llm):
    stream = llm.stream(TEXTS[0], GREEDY)
    next(stream)
    stream.close()
    assert not llm.engine.has_work
    assert llm.engine.pool.num_free == len(llm.engine.pool.references)


def test_an_interrupted_step_harms_nobody(llm, alone, monkeypatch):
    """Ctrl-C in the middle of a step: requests go on afterwards with the right tokens."""
    stream = llm.stream(TEXTS[4], GREEDY)
    got = [*next(stream).token_ids]
    request = next(iter(llm._inbox))
    run = llm.engine.runner.step

    def interrupted(batch, sampling):
        run(batch, sampling)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.engine.runner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.collect(request)
    monkeypatch.undo()
    for delta in stream:
        got.extend(delta.token_ids)
    assert [tuple(got)] == alone[4]


def test_logprobs_are_of_the_unedited_distribution(llm):
    params = SamplingParams(
        temperature=0, max_tokens=6, logprobs=3, ignore_eos=True, repetition_penalty=1.8
    )
    completion = llm.generate(TEXTS[2], params)[0].completions[0]
    assert len(completion.logprobs) == 6
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry.token_id == token
        values = [logprob for _, _, logprob in entry.top]
        assert values == sorted(values, reverse=True)
        assert entry.logprob <= values[0]
        assert sum(np.exp(values)) <= 1 + 1e-5


def test_logit_bias_decides_and_min_tokens_hold_the_end_back(llm):
    forced = SamplingParams(temperature=0, max_tokens=3, logit_bias={65: 100.0})
    assert tokens(llm.generate(TEXTS[0], forced)[0]) == [(65, 65, 65)]
    ends = dict.fromkeys(llm.engine.limits.eos_token_ids, 100.0)
    params = SamplingParams(temperature=0, max_tokens=9, min_tokens=4, logit_bias=ends)
    completion = llm.generate(TEXTS[0], params)[0].completions[0]
    assert (len(completion.token_ids), completion.finish_reason) == (5, "stop")


def test_as_completed_reports_bad_prompts_and_goes_on(llm):
    prompts = ["good one", "   ", "x y " * 600, "another", [{"role": "user", "content": "hi"}]]
    results = dict(llm.as_completed(iter(prompts), GREEDY))
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert isinstance(results[1], BadInput)
    assert "empty" in str(results[1])
    assert "context" in str(results[2])
    assert all(results[i].completions[0].finish_reason == "length" for i in (0, 3, 4))


def test_a_repeated_prompt_is_read_from_the_cache(llm):
    long = "some shared beginning " * 8
    llm.generate(long + "one", GREEDY)
    usage = llm.generate(long + "two", GREEDY)[0].usage
    assert usage.cached_tokens >= 16
    assert usage.cached_tokens % 16 == 0


def test_the_context_ends_an_answer(folder):
    with open_llm(folder, max_model_len=32) as llm:
        output = llm.generate("ab", SamplingParams(max_tokens=None, ignore_eos=True))[0]
        assert output.completions[0].finish_reason == "length"
        assert len(output.prompt_token_ids) + output.usage.completion_tokens == 32


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"quant": "wint9"}, UsageError, "wint8"),
        ({"dtype": "int4"}, UsageError, "dtype"),
        ({"device": "tpu"}, UsageError, "device"),
        ({"max_num_seqs": -1}, UsageError, "max_num_seqs"),
        ({"kv_cache_memory": 1000}, Unsupported, "MiB"),
        ({"kv_cache_memory": 100_000, "max_model_len": 512}, Unsupported, "512 tokens"),
    ],
)
def test_bad_options_are_named(folder, options, error, text):
    with pytest.raises(error, match=text):
        open_llm(folder, **options)


def test_tokens_outside_the_vocabulary_are_refused(llm):
    with pytest.raises(InvalidParams, match="vocabulary"):
        llm.generate("a", SamplingParams(stop_token_ids=[10**6]))
