"""Lines of a JSONL batch: reading them, and what prompt and settings each one asks for.

A record has one of
    {"prompt": text}   {"messages": [{"role", "content"}, …]}   {"src": text or list, "tgt": …}
and optionally "id", "system" and "params" (names and values of SamplingParams). In PaddleNLP's
"src"/"tgt" form lists are turns: src[0], tgt[0], src[1], … and the last of src is the question.
Other fields are copied to the output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NoReturn

from qinfer.core.errors import BadInput, InvalidParams
from qinfer.core.params import PARAM_NAMES, SamplingParams
from qinfer.core.text.chat import check_messages

MAX_LINE_BYTES = 8 * 2**20

Prompt = str | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What holds for every line that doesn't say otherwise. ``raw``: no chat template."""

    params: SamplingParams
    system: str = ""
    raw: bool = False


def read_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None for one that is too long to be read."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line.strip()
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield None


def parse_line(line: bytes | None) -> dict[str, Any]:
    """The JSON object on a line. Raises BadInput."""
    if line is None:
        raise BadInput(f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"the line is not valid UTF-8 (at byte {error.start})") from None
    try:
        record = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the line is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadInput("the line must be a JSON object")
    return record


def line_prompt(record: Mapping[str, Any], settings: BatchSettings) -> Prompt:
    """A record's prompt: text for a raw one, else a conversation. Raises BadInput."""
    forms = [name for name in ("prompt", "messages", "src") if name in record]
    if len(forms) != 1:
        found = f"it has {' and '.join(forms)}" if forms else "it has none"
        raise BadInput(f'a line needs exactly one of "prompt", "messages" and "src"; {found}')
    form = forms[0]
    value = record[form]
    if settings.raw:
        if not isinstance(value, str):
            raise BadInput(f'--raw needs text in "{form}", and this is a conversation')
        return _text(form, value)
    if form == "messages":
        messages = check_messages(value)
    elif form == "prompt":
        messages = [{"role": "user", "content": _text(form, value)}]
    else:
        messages = _turns(value, record.get("tgt"))
    system = record.get("system", settings.system)
    if not isinstance(system, str):
        raise BadInput(f'"system" must be text, not {system!r:.80}')
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def line_params(record: Mapping[str, Any], settings: BatchSettings) -> SamplingParams:
    """A record's sampling parameters: the command's, changed by "params". Raises BadInput."""
    misplaced = sorted(PARAM_NAMES & record.keys())
    if misplaced:
        raise BadInput(
            f"sampling settings stand beside the prompt: {', '.join(misplaced)}",
            remedy='Put them under "params", as in {"prompt": "…", "params": {"max_tokens": 9}}.',
        )
    changes = record.get("params", {})
    if not isinstance(changes, dict):
        raise BadInput('"params" must be an object')
    if not changes:
        return settings.params
    unknown = sorted(changes.keys() - PARAM_NAMES)
    if unknown:
        raise BadInput(
            f'unknown names in "params": {", ".join(unknown)}',
            remedy=f"Known are {', '.join(sorted(PARAM_NAMES))}.",
        )
    try:
        if "logit_bias" in changes:  # JSON has no other keys than texts
            bias = {int(token): value for token, value in changes["logit_bias"].items()}
            changes = {**changes, "logit_bias": bias}
        return replace(settings.params, **changes)
    except InvalidParams as error:
        raise BadInput(error.message) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f'a value in "params" has the wrong type: {error}') from None


def _turns(src: Any, tgt: Any) -> list[dict[str, str]]:
    questions = src if isinstance(src, list) else [src]
    answers = tgt if isinstance(tgt, list) else [] if tgt is None else [tgt]
    if not questions:
        raise BadInput('"src" is an empty list')
    earlier = questions[:-1]
    if len(answers) < len(earlier):
        raise BadInput(
            f'"src" has {len(questions)} turns, so "tgt" needs at least {len(earlier)} answers; '
            f"it has {len(answers)}"
        )
    messages = []
    for question, answer in zip(earlier, answers, strict=False):
        messages.append({"role": "user", "content": _text("src", question)})
        messages.append({"role": "assistant", "content": _text("tgt", answer)})
    messages.append({"role": "user", "content": _text("src", questions[-1])})
    return check_messages(messages)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f'"{name}" must be text, not {value!r:.80}')
    if not value.strip():
        raise BadInput(f'"{name}" is empty')
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
