"""A good config.json in both styles of transformers, and reading it with changes."""

from qinfer.core.config import decoder_config

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


PAPER = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}


def read(**changes):
    raw = {**GOOD, **OLD, **changes}
    return decoder_config({k: v for k, v in raw.items() if v != "absent"}, defaults=DEFAULTS)
