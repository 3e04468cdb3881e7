"""Checksums of files in pieces."""

import hashlib

import pytest

from qinfer.core.errors import BadCheckpoint
from qinfer.core.export import checks


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(checks, "PIECE", 64)


def require(folder, facts):
    with checks.checking(folder, facts) as sums:
        sums.require()


@pytest.mark.parametrize("size", [0, 1, 64])
def test_a_small_file_s_is_its_sha256(tmp_path, rng, size):
    (tmp_path / "file").write_bytes(data := rng.bytes(size))
    facts = checks.file_facts(tmp_path)["file"]
    assert (facts.size, facts.sha256) == (size, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [65, 128, 1000])
def test_a_large_file_s_is_that_of_its_pieces(tmp_path, rng, size):
    (tmp_path / "file").write_bytes(data := rng.bytes(size))
    facts = checks.file_facts(tmp_path)
    pieces = [data[at : at + 64] for at in range(0, size, 64)]
    sums = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert facts["file"].sha256 == hashlib.sha256(sums).hexdigest()
    require(tmp_path, facts)
    for wrong in (data[64:] + data[:64], data[:-1] + bytes([data[-1] ^ 128])):
        (tmp_path / "file").write_bytes(wrong)
        with pytest.raises(BadCheckpoint, match="its checksum is another"):
            require(tmp_path, facts)
