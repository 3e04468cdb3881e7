"""Requests to tokens: scheduling, the paged KV cache and sampling."""
