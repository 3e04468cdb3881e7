"""Tiny Qwen2 models with known answers: what they are, and what transformers says of them."""
