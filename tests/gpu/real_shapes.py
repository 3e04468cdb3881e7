"""Models whose layers have the shapes of published ones, a few of them, and a small vocabulary."""

from goldens.case import Case

NEW_TOKENS = 64

_SMALL = {"vocab_size": 4096, "prompt_length": 96, "num_layers": 4}
_EXPERTS = {"decoder_sparse_step": 1, "mlp_only_layers": []}

CASES = {
    case.name: case
    for case in (
        Case(
            name="qwen2-0.5b",
            **_SMALL,
            hidden_size=896,
            intermediate_size=4864,
            num_heads=14,
            tied=True,
            seed=101,
        ),
        Case(
            name="qwen2-1.5b",
            **_SMALL | {"num_layers": 2},
            hidden_size=1536,
            intermediate_size=8960,
            num_heads=12,
            seed=102,
        ),
        Case(
            name="qwen2-moe",
            family="qwen2_moe",
            **_SMALL,
            hidden_size=1024,
            num_heads=8,
            num_kv_heads=8,
            seed=103,
            more=_EXPERTS
            | {
                "num_experts": 24,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 352,
                "shared_expert_intermediate_size": 1408,
                "norm_topk_prob": False,
            },
        ),
        Case(
            name="qwen3-0.6b",
            family="qwen3",
            **_SMALL,
            hidden_size=1024,
            intermediate_size=3072,
            num_heads=16,
            num_kv_heads=8,
            width=128,
            tied=True,
            seed=104,
        ),
        Case(
            name="qwen3-moe",
            family="qwen3_moe",
            **_SMALL,
            hidden_size=1024,
            num_heads=16,
            num_kv_heads=4,
            width=128,
            seed=105,
            more=_EXPERTS
            | {
                "num_experts": 32,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 384,
                "norm_topk_prob": True,
            },
        ),
    )
}
