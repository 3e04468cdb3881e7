"""From what the user typed after --model to a folder on this machine."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qinfer.core.checkpoint.paddlenlp_hub import (
    PREFIX,
    config_from_paddlenlp,
    download_from_paddlenlp,
)
from qinfer.core.errors import BadCheckpoint

Progress = Callable[[str], None]
"""Is given one line of text at a time, to be shown on stderr."""

# Never code and never pickles: what is not downloaded cannot be run by mistake.
ALLOWED = (
    "*.json",
    "*.safetensors",
    "*.tiktoken",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
)
IGNORED = ("*/*",)  # other formats of the same weights lie in subfolders

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_OFFLINE_REMEDY = (
    "Give the folder of a checkpoint on this disk; or set HF_HUB_OFFLINE=1 to use only what has "
    "been downloaded before; or set HF_ENDPOINT to a mirror that this machine can reach."
)


def resolve_model(reference: str | None, *, progress: Progress | None = None) -> Path:
    """The folder of a checkpoint: a path, a Hugging Face id ``org/name`` or ``org/name@revision``
    (downloaded into huggingface_hub's cache, resuming what was begun), ``paddlenlp:NAME``
    (downloaded by PaddleNLP), or None for the demo.

    Without ``progress`` nothing is printed; with it, huggingface_hub's bars too if stderr is a
    terminal.
    Raises BadCheckpoint saying why there is no such folder and what to do.
    """
    if reference is None:
        from qinfer.core.demo.folder import demo_folder

        return demo_folder(progress=progress)
    if reference.startswith(PREFIX):
        return download_from_paddlenlp(reference.removeprefix(PREFIX), progress)
    folder = _local(reference)
    if folder is not None:
        return folder
    return _download(*_hub_id(reference), progress)


def resolve_config(reference: str) -> Path:
    """config.json of a checkpoint: in the folder of that path, or downloaded alone from the hub.

    Raises BadCheckpoint as ``resolve_model`` does.
    """
    if reference.startswith(PREFIX):
        return config_from_paddlenlp(reference.removeprefix(PREFIX))
    folder = _local(reference)
    if folder is not None:
        return folder / "config.json"
    repo, revision = _hub_id(reference)
    from huggingface_hub import hf_hub_download

    try:
        with _bars(False):
            return Path(hf_hub_download(repo, "config.json", revision=revision))
    except Exception as error:
        raise _explained(repo, revision, error) from error


def _hub_id(reference: str) -> tuple[str, str | None]:
    match = _HUB_ID.fullmatch(reference)
    if match is None or _looks_like_path(reference):
        raise BadCheckpoint(
            f"there is no folder {reference!r}.",
            remedy="Check the path (it is taken from the current folder), or give a Hugging Face "
            "id such as Qwen/Qwen2.5-0.5B-Instruct.",
        )
    return match["repo"], match["revision"]


def _local(reference: str) -> Path | None:
    """The folder of that path if there is one."""
    if not reference:  # Path("") would be the current folder
        return None
    try:
        path = Path(reference).expanduser()
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, no home folder
        raise BadCheckpoint(
            f"{reference[:200]!r} is not a usable path: {error}.", remedy="Check the path."
        ) from None
    if exists:
        what = "GGUF files are not read" if path.suffix == ".gguf" else "it is a file"
        raise BadCheckpoint(
            f"{reference!r} is not the folder of a checkpoint: {what}.",
            remedy="Give the folder that holds config.json, tokenizer.json and *.safetensors.",
        )
    return None


def _looks_like_path(reference: str) -> bool:
    return reference.startswith((".", "/", "~")) or reference.endswith("/") or "\\" in reference


def _download(repo: str, revision: str | None, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download

    if progress is not None:
        at = f" at {revision}" if revision else ""
        progress(f"Looking for {repo}{at} in the Hugging Face cache and on the hub")
    try:
        with _bars(progress is not None and sys.stderr.isatty()):
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(ALLOWED),
                ignore_patterns=list(IGNORED),
            )
    except Exception as error:
        raise _explained(repo, revision, error) from error
    return Path(folder)


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """Switch huggingface_hub's progress bars off unless they are wanted."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explained(repo: str, revision: str | None, error: Exception) -> BadCheckpoint:
    """The failure in words.

    Told by the names of the error's classes: they have moved between huggingface_hub's modules
    (and its HTTP libraries) from version to version, the names have not.
    """
    kinds = _kinds(error)
    if "GatedRepoError" in kinds:
        return BadCheckpoint(
            f"{repo} is gated: its authors give access on request.",
            remedy=f"Ask for access on its page (https://huggingface.co/{repo}), then log in with "
            "'hf auth login' or set HF_TOKEN.",
        )
    if "RevisionNotFoundError" in kinds:
        return BadCheckpoint(
            f"{repo} has no revision {revision!r}.",
            remedy="Name one of its branches, tags or commits after the @, or leave it out.",
        )
    if kinds & {"RepositoryNotFoundError", "DisabledRepoError"}:
        return BadCheckpoint(
            f"there is no folder {repo!r} here, and no such model on the hub that you may see.",
            remedy="Check the spelling. For a private model log in with 'hf auth login' or set "
            "HF_TOKEN.",
        )
    if "HFValidationError" in kinds:
        return BadCheckpoint(
            f"there is no folder {repo!r} here, and it is no valid Hugging Face id.",
            remedy="Ids look like Qwen/Qwen2.5-0.5B-Instruct.",
        )
    return _unreachable(repo, error, kinds)


def _unreachable(repo: str, error: Exception, kinds: set[str]) -> BadCheckpoint:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return BadCheckpoint(
            f"the disk is full: {repo} could not be downloaded completely.",
            remedy="Free some space or set HF_HOME to a folder on another disk, and run it again: "
            "the download continues where it stopped.",
        )
    if "OfflineModeIsEnabled" in kinds:
        return BadCheckpoint(
            f"{repo} is not (completely) in the Hugging Face cache, and HF_HUB_OFFLINE is set.",
            remedy="Unset HF_HUB_OFFLINE to download it, set HF_HOME to the folder it was "
            "downloaded to, or give the folder of a checkpoint on this disk.",
        )
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    if "LocalEntryNotFoundError" in kinds or kinds & {"ConnectError", "ConnectionError"}:
        return BadCheckpoint(
            f"{repo} is not on this disk, and the hub cannot be reached: {reason}.",
            remedy=_OFFLINE_REMEDY,
        )
    return BadCheckpoint(
        f"downloading {repo} failed: {type(error).__name__}: {reason}.",
        remedy="Run it again: the download continues where it stopped. " + _OFFLINE_REMEDY,
    )


def _kinds(error: BaseException | None) -> set[str]:
    """The names of the classes of an error and of what caused it."""
    names: set[str] = set()
    while error is not None and len(names) < 100:
        names.update(kind.__name__ for kind in type(error).__mro__)
        error = error.__cause__
    return names
