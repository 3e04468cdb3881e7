"""Checksums of files in pieces."""

import hashlib

import pytest

from qinfer.core.errors import BadCheckpoint
from qinfer.core.export import checks

PIECE = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(checks, "PIECE", PIECE)


def require(folder, facts):
    with checks.checking(folder, facts) as sums:
        sums.require()


@pytest.mark.parametrize("size", [0, 1, PIECE])
def test_a_small_file_s_is_its_sha256(tmp_path, rng, size):
    (tmp_path / "file").write_bytes(data := rng.bytes(size))
    facts = checks.file_facts(tmp_path)["file"]
    assert (facts.size, facts.sha256) == (size, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [PIECE + 1, 2 * PIECE, 5 * PIECE - 7])
def test_a_large_file_s_is_that_of_its_pieces(tmp_path, rng, size):
    (tmp_path / "file").write_bytes(data := rng.bytes(size))
    facts = checks.file_facts(tmp_path)
    pieces = [data[at : at + PIECE] for at in range(0, size, PIECE)]
    sums = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert facts["file"].sha256 == hashlib.sha256(sums).hexdigest()
    require(tmp_path, facts)
    for wrong in (data[PIECE:] + data[:PIECE], data[:-1] + bytes([data[-1] ^ 128])):
        (tmp_path / "file").write_bytes(wrong)
        with pytest.raises(BadCheckpoint, match="its checksum is another"):
            require(tmp_path, facts)
