"""A fake compiler, and qinfer in processes of its own."""

import subprocess
import sys
from pathlib import Path

COMPILER = """\
#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
case "$*" in --version) echo "fake 1"; exit;; esac
case "$*" in *" -c "*) if [ -e "$here/slow" ]; then sleep $(cat "$here/slow"); fi;; esac
case "$*" in *-march=native*) if [ -e "$here/old" ]; then exit 1; fi;; esac
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then echo made > "$2"; fi
    shift
done
"""
"""Compiles nothing. A file beside it called "slow" has the seconds a compilation takes, one called
"old" makes it refuse -march=native."""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def python(*arguments, **options):
    """A process of its own, away from the repository."""
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd="/", **options)


def qinfer(*arguments):
    process = python("-m", "qinfer", *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err
