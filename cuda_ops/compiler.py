"""The C++ compiler: finding it, asking it, and its words where it fails."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

from qinfer.core.errors import Unsupported
from qinfer.core.hardware.machine import cxx_compiler, cxx_wanted

_OTHER = "Set CXX to another compiler (GCC 10 or newer, Clang 14 or newer)."
_MAKE_ROOM = "Make room in the cache folder, and where the compiler writes meanwhile (TMPDIR)."


Command = tuple[str, ...]
"""A program's path and its first arguments."""


def find_compiler(kind: str) -> Command:
    """What compiles C++; raises Unsupported saying which ``kind`` of operators wants it."""
    if compiler := cxx_compiler():
        return compiler
    if wanted := cxx_wanted():
        raise Unsupported(
            f"CXX names {wanted} to build the {kind} operators with, and there is no such program",
            remedy="Correct or unset it: the usual compilers are found on PATH.",
        )
    raise Unsupported(
        f"there is no C++ compiler to build the {kind} operators with",
        remedy="Install one (Debian, Ubuntu: apt-get install g++) or set CXX.",
    )


def version(compiler: Command) -> str:
    """What it says of itself, and the arguments it is always given."""
    return " ".join([run_compiler([*compiler, "--version"]).stdout, *compiler[1:]])


def shared_runtime(compiler: Command) -> list[str]:
    """The C++ library to link first: the shared one, where the compiler has a file of its name.

    Where only the static one is set up for linking, a library gets a copy of its own, whose
    streams are not initialised: every error message crashed the process.
    """
    found = run_compiler([*compiler, "-print-file-name=libstdc++.so.6"]).stdout.strip()
    return [found] if Path(found).is_absolute() else []


def checked(command: list[str]) -> None:
    """Run a compiler; raises Unsupported with its words if it fails."""
    done = run_compiler(command)
    if done.returncode == 0:
        return
    words = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    words = words or [f"nothing, and ends with {done.returncode}"]
    first = next((line for line in words if "error" in line.lower()), words[0])
    is_full = any(os.strerror(errno.ENOSPC) in line for line in words)
    more = "".join(f"\n{line}" for line in words[:20] if len(words) > 1)
    raise Unsupported(
        f"the native operators cannot be compiled; {command[0]} says: {first}{more}",
        remedy=_MAKE_ROOM if is_full else _OTHER,
    )


def run_compiler(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler and keep what it says; raises Unsupported where it cannot be run."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, check=False
        )
    except OSError as error:
        raise Unsupported(
            f"the C++ compiler {command[0]} cannot be run: {error}",
            remedy="Set CXX to a working compiler.",
        ) from error


def instructions(compiler: Command, target: tuple[str, ...]) -> set[str]:
    """What the compiler may use beyond the least, as its predefined macros name it: AVX512VNNI."""
    said = run_compiler([*compiler, *target, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    return set(re.findall(r"^#define __((?:AVX|FMA|F16C|ARM_FEATURE_)\w*?)_* 1$", said, re.M))
