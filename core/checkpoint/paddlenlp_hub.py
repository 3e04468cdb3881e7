"""Checkpoints on PaddleNLP's own hub, downloaded by PaddleNLP (the extra ``paddlenlp``).

Its resolver, ``paddlenlp.utils.download.resolve_file_path``, gives the path of one file in its
cache, or None for a file that is not on the hub. All files of a model are in one folder there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path

from qinfer.core.errors import BadCheckpoint, QinferError, Unsupported
from qinfer.core.json_file import read_json

PREFIX = "paddlenlp:"
INDEX, WEIGHTS, PICKLE = "model.safetensors.index.json", "model.safetensors", "model_state.pdparams"
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "qwen.tiktoken",
    "chat_template.json",
)
SCALES = ("act_scales", "weight_scales", "cachekv_scales")
MAX_INDEX = 64 * 2**20

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")

Resolve = Callable[[str], "Path | None"]
"""A file's name -> where it is now, None if the hub has none."""


def download_from_paddlenlp(name: str, note: Callable[[str], None] | None) -> Path:
    """The folder of the model ``name``, with weights, tokenizer and scales.

    Raises Unsupported without PaddleNLP, and BadCheckpoint saying what is missing or went wrong.
    """
    resolve = _resolver(name)
    if note is not None:
        note(f"Looking for {name} in PaddleNLP's cache and on its hub")
    folder = config_from_paddlenlp(name).parent
    files = [*_weights(name, resolve), *map(resolve, BESIDE), *_scales(resolve)]
    elsewhere = {path.parent for path in files if path is not None} - {folder}
    if elsewhere:
        raise BadCheckpoint(
            f"PaddleNLP put the files of {name} into several folders: {folder} and "
            f"{', '.join(map(str, elsewhere))}.",
            remedy="Copy them into one folder and give that with --model.",
        )
    return folder


def config_from_paddlenlp(name: str) -> Path:
    """config.json alone. Raises as ``download_from_paddlenlp`` does."""
    path = _resolver(name)("config.json")
    if path is None:
        raise BadCheckpoint(
            f"PaddleNLP's hub has no model {name!r}, or none with a config.json.",
            remedy="Names look like Qwen/Qwen2-7B-Instruct-A8W8C8; check the spelling.",
        )
    return path


def _resolver(name: str) -> Resolve:
    """PaddleNLP's resolver for one model, with its failures in words."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise BadCheckpoint(
            f"{name!r} is no name of a model on PaddleNLP's hub.",
            remedy="Names look like Qwen/Qwen2-7B-Instruct-A8W8C8.",
        )
    try:
        resolve_file_path = import_module("paddlenlp.utils.download").resolve_file_path
    except Exception as error:
        # Besides being absent, it fails to import with newer versions of what it needs.
        absent = isinstance(error, ModuleNotFoundError) and error.name == "paddlenlp"
        why = "is not installed" if absent else f"cannot be imported ({error})"
        raise Unsupported(
            f"{PREFIX}{name} is downloaded by PaddleNLP, which {why}",
            remedy="pip install 'qinfer-paddle[paddlenlp]', or give a folder with --model.",
        ) from error

    def resolve(file: str) -> Path | None:
        try:
            found = resolve_file_path(name, [file])
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BadCheckpoint(
                f"{file} of {name} could not be downloaded from PaddleNLP's hub: {reason}.",
                remedy="Check the connection and run it again: what is complete is not downloaded "
                "again. PPNLP_HOME is the folder it goes to.",
            ) from error
        return None if found is None else Path(found)

    return resolve


def _weights(name: str, resolve: Resolve) -> Iterator[Path]:
    """The index and its shards, or the only file."""
    index = resolve(INDEX)
    if index is None:
        single = resolve(WEIGHTS)
        if single is None:
            raise BadCheckpoint(
                f"{name} has no weights as safetensors on PaddleNLP's hub; {PICKLE} would be a "
                "pickle, which can run code and is not read.",
                remedy="Load it with PaddleNLP and save it with safe_serialization=True, then give "
                "that folder.",
            )
        yield single
        return
    yield index
    listed = read_json(index, MAX_INDEX).get("weight_map")
    shards = sorted(set(listed.values())) if isinstance(listed, dict) else []
    bad = [shard for shard in shards if not isinstance(shard, str) or not _SHARD.fullmatch(shard)]
    if bad or not shards:
        raise BadCheckpoint(
            f"{index} lists {bad[0]!r:.100} as a file of weights."
            if bad
            else f"{index} lists no files of weights.",
            remedy="Tell who published the model.",
        )
    for shard in shards:
        path = resolve(shard)
        if path is None:
            raise QinferError(
                f"{name}: its index lists {shard}, which PaddleNLP's hub does not have",
                remedy="Tell who published the model.",
            )
        yield path


def _scales(resolve: Resolve) -> Iterator[Path]:
    """Scales of a quantised model: of one card, or of each."""
    for stem in SCALES:
        single = resolve(f"{stem}.json")
        if single is not None:
            yield single
            continue
        for rank in count():
            part = resolve(f"{stem}_{rank}.json")
            if part is None:
                break
            yield part
