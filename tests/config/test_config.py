"""A dense decoder's config.json: what is read, and what is refused."""

import pytest

from config.tools import DEFAULTS, GOOD, NEW, OLD, read
from qinfer.core.config import decoder_config
from qinfer.core.errors import BadCheckpoint
from qinfer.core.types import ModelConfig


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


def test_keys_that_change_nothing_are_ignored():
    read(attention_dropout=0.1, router_aux_loss_coef=0.001, rope_scaling_factor=1.0, unsloth="x")
    read(_attn_implementation="eager", residual_multiplier=0, use_fused_rope=True, use_qk_norm="")


def test_all_problems_at_once():
    message = complaint(hidden_size=0, vocab_size="absent", hidden_act="relu", rope_theta=-1)
    assert len(message.splitlines()) == 5
