"""Fixtures shared by all tests."""

import zlib

import numpy as np
import pytest

from qinfer.core.device import prepare_paddle

prepare_paddle()  # before any test imports Paddle, as the session does


@pytest.fixture
def rng(request):
    """Random numbers that differ from test to test and repeat from run to run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
