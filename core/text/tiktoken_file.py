"""``qwen.tiktoken``, the first Qwen's vocabulary, as a model of the ``tokenizers`` library.

A line has a token's bytes in base64 and its rank. tiktoken joins the two neighbours whose bytes
together have the lowest rank, whichever two they are; the library wants the pairs. So every way to
cut a token into two others becomes a merge, in the order of the tokens' ranks.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import models

from qinfer.core.errors import BadCheckpoint
from qinfer.core.text.byte_level import CHAR_OF

NAME = "qwen.tiktoken"
MAX_BYTES = 64 * 2**20
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
"""The tokens behind the ranks (tokenization_qwen.py)."""


def read_tiktoken(path: Path) -> models.BPE:
    """The vocabulary without the special tokens. Raises BadCheckpoint naming the line."""
    ranks = _ranks(path)
    merges: list[tuple[str, str]] = []
    text = {token: "".join(CHAR_OF[byte] for byte in token) for token in ranks}
    for token in ranks:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += [(text[a], text[b]) for a, b in cuts if a in ranks and b in ranks]
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    # A whole word that is a token is taken as it is, as tiktoken does.
    return models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True)


def _ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, in the order of the ranks, which are those from 0 on."""
    if path.stat().st_size > MAX_BYTES:
        raise _bad(path, f"it is larger than {MAX_BYTES:,} bytes")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            decoded = base64.b64decode(token, validate=True)
            wrong = int(rank) != len(ranks) or not decoded or decoded in ranks
        except (ValueError, binascii.Error):
            wrong = True
        if wrong:
            raise _bad(path, f"line {number} is not the token of rank {len(ranks)}")
        ranks[decoded] = len(ranks)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise _bad(path, f"byte {missing[0]} has no token of its own")
    return ranks


def _bad(path: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} cannot be read: {why}.",
        remedy="Copy the file again from where the checkpoint came from.",
    )
