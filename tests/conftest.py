"""Fixtures shared by all tests."""

import os
import signal
import zlib

import numpy as np
import pytest
from hypothesis import settings

from qinfer.core.hardware.machine import cuda_compiler, usable_cores
from qinfer.core.hardware.nvidia import cards
from qinfer.core.hardware.start_paddle import import_paddle

# Before any test imports Paddle, as the session does; the tests in tests/gpu change the device.
if cards() and cuda_compiler():
    import_paddle(device="gpu")
import_paddle()

# Processes that a test starts and interrupts listen to it, also where a shell started the tests in
# the background: there an interrupt is ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread a run of all tests over two processes, unless ``-n`` or ``--pdb`` is given.

    Most tests keep one core busy. A card's memory is for one process.
    """
    options = config.option
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if hasattr(config, "workerinput") or not everything:  # one of the two is this process
        return
    if getattr(options, "numprocesses", 0) is None and not options.usepdb:
        options.numprocesses = 0 if cards() else min(2, usable_cores())
        options.dist = "worksteal"  # neighbours share fixtures
        # Threads that wait for work would by default spin, on the other process's core.
        os.environ.setdefault("KMP_BLOCKTIME", "0")
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def on_processor(request, monkeypatch):
    """``--device auto`` is the processor, but for the tests that need a card."""
    if "/gpu/" not in request.path.as_posix():
        monkeypatch.setattr("qinfer.core.hardware.device.cards", list)


@pytest.fixture
def rng(request):
    """Random numbers that differ from test to test and repeat from run to run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


settings.register_profile("no-deadline", deadline=None)  # a busy computer is no failure
settings.load_profile("no-deadline")
