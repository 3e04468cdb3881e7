import json
import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qinfer.core.config import decoder_config, generation_config, with_experts, with_generation
from qinfer.core.errors import BadCheckpoint
from qinfer.core.json_file import read_json
from qinfer.core.rotary import rotary_table
from qinfer.core.types import ModelConfig

DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}
GOOD = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 151645,
}
OLD = {
    "rope_theta": 1e6,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 21,
}
NEW = {
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
    "dtype": "bfloat16",
    "layer_types": ["full_attention"] * 24,
    "use_sliding_window": False,
    "sliding_window": None,
}


def read(**changes):
    raw = {**GOOD, **OLD, **changes}
    return decoder_config({k: v for k, v in raw.items() if v != "absent"}, defaults=DEFAULTS)


def complaint(**changes):
    with pytest.raises(BadCheckpoint) as caught:
        read(**changes)
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("style", [OLD, NEW], ids=["transformers 4", "transformers 5"])
def test_both_styles(style):
    assert decoder_config({**GOOD, **style}, defaults=DEFAULTS) == ModelConfig(
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        dtype="bfloat16",
        eos_token_ids=(151645,),
    )


def test_defaults():
    config = read(
        num_key_value_heads=None,
        rope_theta="absent",
        rms_norm_eps="absent",
        torch_dtype="absent",
        tie_word_embeddings="absent",
        hidden_act="absent",
        eos_token_id="absent",
    )
    assert (config.num_kv_heads, config.head_dim) == (14, 64)
    assert (config.rope_theta, config.rms_norm_eps) == (1e4, 1e-6)
    assert (config.dtype, config.tie_word_embeddings) == ("bfloat16", False)
    assert config.eos_token_ids == ()


def test_explicit_head_dim_need_not_divide():
    assert read(head_dim=128).head_dim == 128
    assert read(head_dim=128, hidden_size=1000).head_dim == 128


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("float16", "float16"), ("torch.bfloat16", "bfloat16"), ("float32", "float32")],
)
def test_dtypes(value, dtype):
    assert read(torch_dtype=value).dtype == dtype
    assert read(torch_dtype="float32", dtype=value).dtype == dtype


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "head_dim"])
@pytest.mark.parametrize(
    "value", [True, 0, -1, 1.5, "896", [896], 2**40, float("nan"), float("inf"), {}]
)
def test_sizes(key, value):
    assert f"{key}: must be a whole number from 1 to" in complaint(**{key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize(
    "value", [True, 0, -1e-6, float("nan"), float("inf"), "1e-6", 10**400, [1]]
)
def test_numbers(key, value):
    assert f"{key}: must be a number above 0" in complaint(**{key: value})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "absent"}, "hidden_size: missing"),
        ({"model_type": "absent"}, "model_type: missing"),
        ({"model_type": 3}, "model_type: must be text"),
        ({"hidden_size": 900}, "hidden_size: 900 is not a multiple of num_attention_heads, 14"),
        ({"num_key_value_heads": 4}, "14 is not a multiple of num_key_value_heads, 4"),
        ({"head_dim": 65}, "head_dim: 65 is odd"),
        ({"hidden_act": "gelu"}, "only silu is supported, found 'gelu'"),
        ({"torch_dtype": "int8"}, "torch_dtype: must be one of"),
        ({"dtype": 16}, "dtype: must be one of"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: must be true or false"),
        ({"eos_token_id": "x"}, "eos_token_id: must be token ids"),
        ({"eos_token_id": [1, True]}, "eos_token_id: must be token ids"),
        ({"eos_token_id": 151936}, "found 151936"),
        ({"use_sliding_window": "yes"}, "use_sliding_window: must be true or false"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window: must be a whole"),
        ({"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers: must be"),
        ({"layer_types": ["full_attention"] * 23}, "layer_types: must list 24 layers"),
        ({"layer_types": ["sliding_attention"] * 24}, "contradicts use_sliding_window"),
        ({"layer_types": ["linear_attention"] * 24}, "found 'linear_attention'"),
        ({"layer_types": 5}, "layer_types: must list 24 layers"),
        ({"rope_scaling": {"type": "longrope"}}, "rotary scaling 'longrope' is not known"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rotary scaling ['yarn'] is not known"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "contradict"),
        ({"rope_scaling": {"factor": 4.0}}, "'factor' = 4.0: not understood with rope_type def"),
        ({"rope_scaling": {"type": "linear"}}, "rotary factor: missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "rotary factor: must be at least 1"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "low": 1}}, "'low' = 1: not understood"),
        ({"rope_scaling": {"type": "yarn", "beta_fast": "x"}}, "rotary beta_fast: must be a"),
        (
            {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}},
            "original_max_position_embeddings: must be a length",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1}}}, "not understood"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only whole heads are rotated"),
        ({"rope_parameters": {"rope_theta": 5e6}}, "contradict"),
        ({"rope_scaling": [4]}, "rope_scaling: must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_scaling_type": "yarn"}, "rope_scaling_type = 'yarn'"),
        ({"residual_multiplier": 0.2}, "'residual_multiplier' = 0.2: not understood"),
        ({"use_qk_norm": True}, "'use_qk_norm' = true: not understood"),
        ({"num_experts": 8}, "'num_experts' = 8: not understood"),
        ({"mlp_bias": True}, "'mlp_bias' = true"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ],
)
def test_refusals(changes, words):
    assert words in complaint(**changes)


def test_biases_the_family_does_not_have():
    raw = {**GOOD, **OLD, "attention_bias": False}
    decoder_config(raw, defaults=DEFAULTS)
    decoder_config(raw, defaults=DEFAULTS, fixed={"attention_bias": False})
    with pytest.raises(BadCheckpoint, match="attention_bias: is always true"):
        decoder_config(raw, defaults=DEFAULTS, fixed={"attention_bias": True})


def test_biases_and_windows():
    assert read().qkv_bias is read().output_bias is False
    both = read(attention_bias=True)
    assert both.qkv_bias is both.output_bias is True
    config = decoder_config({**GOOD, **OLD}, defaults=DEFAULTS, fixed={"qkv_bias": True})
    assert config.qkv_bias is True
    assert config.output_bias is False
    assert read().windows == ()
    assert read(use_sliding_window=True).windows == (0,) * 21 + (32768,) * 3
    kinds = ["sliding_attention", "full_attention"] * 12
    window = {"use_sliding_window": True, "sliding_window": 9, "layer_types": kinds}
    assert read(**window).windows == (9, 0) * 12


PAPER = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("scaling", "context", "expected"),
    [
        ({"type": "linear", "factor": 2}, 65536, {"kind": "linear", "factor": 2}),
        ({"rope_type": "dynamic", "factor": 3.0}, 98304, {"kind": "dynamic", "factor": 3}),
        (PAPER, 32768, {"kind": "yarn", "original": 8192, "attention_factor": 1.1386294}),
        (PAPER | {"attention_factor": 1.5}, 32768, {"attention_factor": 1.5, "beta_fast": 32}),
        (PAPER | {"mscale": 1.0, "mscale_all_dim": 1.0}, 32768, {"attention_factor": 1}),
        (PAPER | {"factor": None}, 32768, {"factor": 4}),
        (PAPER | {"factor": 8.0, "truncate": False}, 65536, {"factor": 8, "truncate": False}),
    ],
)
@pytest.mark.parametrize("style", [4, 5])
def test_rotary_scaling(scaling, context, expected, style):
    if style == 4:
        config = read(rope_scaling=scaling)
    else:
        config = decoder_config(
            {**GOOD, **NEW, "rope_parameters": {"rope_theta": 1e6, **scaling}}, defaults=DEFAULTS
        )
    assert config.max_position_embeddings == context
    found = vars(config.rotary_scaling)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_keys_that_change_nothing_are_ignored():
    read(attention_dropout=0.1, router_aux_loss_coef=0.001, rope_scaling_factor=1.0, unsloth="x")
    read(_attn_implementation="eager", residual_multiplier=0, use_fused_rope=True, use_qk_norm="")


EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}


def read_experts(**changes):
    raw = {**GOOD, **OLD, **EXPERTS, **changes}
    return decoder_config(raw, defaults=DEFAULTS, extend=with_experts).experts


def test_experts():
    found = read_experts()
    assert (found.count, found.top_k, found.intermediate_size) == (8, 2, 96)
    assert found.normalise is True
    assert found.layers == frozenset(range(24))
    assert read_experts(num_experts=None, num_local_experts=8) == found
    assert read_experts(mlp_only_layers=[0, 5]).layers == frozenset(range(24)) - {0, 5}
    assert sorted(read_experts(decoder_sparse_step=5).layers) == [4, 9, 14, 19]
    assert read_experts(decoder_sparse_step=25) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts_per_tok": 9}, "9 is more than the 8 experts"),
        ({"num_experts": None}, "num_experts: missing"),
        ({"mlp_only_layers": [24]}, "mlp_only_layers: must list layers below 24"),
        ({"mlp_only_layers": 3}, "mlp_only_layers: must list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step: must be a whole number from 1"),
        ({"norm_topk_prob": 1}, "norm_topk_prob: must be true or false"),
        ({"shared_expert_intermediate_size": 64}, "not understood"),
    ],
)
def test_expert_refusals(changes, words):
    with pytest.raises(BadCheckpoint) as caught:
        read_experts(**changes)
    assert words in caught.value.message


def test_all_problems_at_once():
    message = complaint(hidden_size=0, vocab_size="absent", hidden_act="relu", rope_theta=-1)
    assert len(message.splitlines()) == 5


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = sorted({*GOOD, *OLD, *NEW, *EXPERTS, "head_dim", "quantization_config", "attention_bias"})
SCALING = st.dictionaries(
    st.sampled_from([*PAPER, "type", "mscale", "mscale_all_dim", "beta_slow", "attention_factor"]),
    JUNK | st.sampled_from(["yarn", "linear", "dynamic", 4.0, 1.0, 8192]),
)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=6))
def test_junk_is_refused_in_one_way(changes):
    with suppress(BadCheckpoint):
        decoder_config({**GOOD, **OLD, **changes}, defaults=DEFAULTS)
    with suppress(BadCheckpoint):
        decoder_config({**GOOD, **OLD, **EXPERTS, **changes}, defaults={}, extend=with_experts)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(SCALING)
def test_junk_scalings_are_refused_or_make_finite_tables(scaling):
    with suppress(BadCheckpoint):
        found = read(rope_scaling=scaling)
        table = rotary_table(9, found.head_dim, found.rope_theta, found.rotary_scaling)
        assert np.isfinite(table).all()


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_junk_files(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.json"
    path.write_bytes(junk)
    with suppress(BadCheckpoint):
        assert isinstance(read_json(path), dict)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{\n"a": 1,\n"b" 2}', "line 3"),  # not a comma at the end: 3.13 reports its own line
        (b"", "line 1"),
        (b"[1]", "holds a list"),
        (b'{"a":\n"\xff"}', "line 2: not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 9999 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * 200 + b'"}', "larger than 150 bytes"),
    ],
)
def test_files_that_are_no_json(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        read_json(path, 150 if b"xxx" in content else 2**24)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_missing_and_special_files(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"there is no config\.json in"):
        read_json(tmp_path / "config.json")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(BadCheckpoint, match="not an ordinary file"):
            read_json(path)


def test_generation_config(tmp_path):
    assert generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    generation = generation_config(tmp_path)
    assert with_generation(read(), generation).eos_token_ids == (151645, 151643)
    assert with_generation(read(), {"eos_token_id": 7}).eos_token_ids == (151645, 7)
    assert with_generation(read(), {}).eos_token_ids == (151645,)
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json: eos_token_id"):
        with_generation(read(), {"eos_token_id": "stop"})
