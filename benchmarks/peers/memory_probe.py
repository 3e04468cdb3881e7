"""Load a checkpoint, or export it, and say how much memory that took.

memory_probe.py MODEL QUANT [EXPORTED_FOLDER]
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serve import reserve_stdout, status_bytes

SAMPLE_SECONDS = 0.002


class AnonymousPeak(threading.Thread):
    """Samples the memory that is not a file's: what a full machine could not take back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, status_bytes("RssAnon"))


def main() -> None:
    model, quant, *exported = sys.argv[1:]
    emit = reserve_stdout()
    from qinfer.core.export.make import export_model
    from qinfer.core.export.manifest import read_manifest
    from qinfer.core.hardware.start_paddle import import_paddle
    from qinfer.core.progress import NoProgress
    from qinfer.core.session import load_model, select
    from qinfer.core.types import RunConfig

    import_paddle(2)
    run = RunConfig(model=model, quant=quant, threads=2)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the imports' own peak
    before, anonymous_before = status_bytes("VmRSS"), status_bytes("RssAnon")
    sampler = AnonymousPeak()
    sampler.start()
    if exported:
        export_model(replace(run, backend="static"), Path(exported[0]), NoProgress())
        stats = read_manifest(Path(exported[0])).parameters
    else:
        stats = load_model(run, select(run), Path(model), NoProgress()).stats
    sampler.stopped.set()
    sampler.join()
    emit(
        {
            "before": before,
            "peak": status_bytes("VmHWM") - before,
            "anonymous_peak": sampler.peak - anonymous_before,
            "after": status_bytes("VmRSS") - before,
            "weights": stats.parameter_bytes,
            "seconds": stats.seconds,
        }
    )


if __name__ == "__main__":
    main()
