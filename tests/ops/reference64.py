"""Float64 numpy references, written from the formulas and independent of the operators."""

import ml_dtypes
import numpy as np


def rms_norm(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, position, theta):
    """Half rotation of one head vector [D] at a position, as complex numbers."""
    half = len(x) // 2
    angles = position * theta ** (-np.arange(half) * 2.0 / len(x))
    turned = (x[:half].astype(np.float64) + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(queries, keys, values, scale, window=0):
    """Causal attention of the last n positions; queries [n, Hq, D], keys and values [L, Hkv, D]."""
    count, heads, _ = queries.shape
    length, kv_heads, _ = keys.shape
    queries, keys, values = (x.astype(np.float64) for x in (queries, keys, values))
    out = np.zeros(queries.shape)
    for i in range(count):
        seen = length - count + i + 1
        first = max(seen - window, 0) if window else 0
        for kv, of in enumerate(np.split(np.arange(heads), kv_heads)):
            scores = queries[i, of] @ keys[first:seen, kv].T * scale
            out[i, of] = softmax(scores) @ values[first:seen, kv]
    return out


def held_by_cache(rows, dtype, static=None):
    """What a KV cache keeps of rows [T, Hkv, D]: rounded, where it has scales after division.
    ``static``: the scale of each head, otherwise each row's own."""
    largest = {"int8": 127, "float8_e4m3fn": 448}.get(dtype)
    if largest is None:
        return rows.astype(getattr(ml_dtypes, dtype, dtype)).astype(np.float32)
    magnitude = np.abs(rows).max(axis=-1, keepdims=True)
    scale = np.maximum(magnitude / np.float32(largest), np.float32(1e-30))
    if static is not None:
        scale = static[:, None]
    divided = np.clip(rows / scale, -largest, largest)
    kept = np.rint(divided) if dtype == "int8" else divided.astype(ml_dtypes.float8_e4m3fn)
    return kept.astype(np.float32) * scale


def keep_set(logits, temperature, top_k, top_p, min_p):
    """Probabilities after temperature, top-k, top-p and min-p, by the definitions, one row."""
    p = softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    kept, total = [], 0.0
    for token in order:
        if total >= top_p or p[token] == 0:
            break
        kept.append(token)
        total += p[token]
    allowed = [t for t in kept if p[t] >= min_p * p[order[0]]]
    q = np.zeros_like(p)
    q[allowed] = p[allowed]
    return q / q.sum()
