"""Fixtures shared by all tests."""

import zlib

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """Random numbers that differ from test to test and repeat from run to run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
