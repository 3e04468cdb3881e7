"""Conversations: checking them and turning them into one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qinfer.core.errors import BadInput

ROLES = ("system", "user", "assistant", "tool")
MAX_MESSAGES = 4096

Message = Mapping[str, str]


def check_messages(value: Any) -> list[dict[str, str]]:
    """A conversation from parsed JSON: a list of {"role", "content"}. Raises BadInput.

    Content given as a list of {"type": "text", "text"} parts is joined. Other fields with a
    text value (such as "name") are kept, for templates that read them.
    """
    if not isinstance(value, list) or not value:
        raise BadInput(
            "a conversation must be a non-empty list of messages",
            remedy='For example: [{"role": "user", "content": "Hello"}]',
        )
    if len(value) > MAX_MESSAGES:
        raise BadInput(
            f"the conversation has {len(value)} messages; at most {MAX_MESSAGES} are allowed"
        )
    return [_check_message(number, message) for number, message in enumerate(value, 1)]


def _check_message(number: int, message: Any) -> dict[str, str]:
    where = f"message {number}"
    if not isinstance(message, Mapping):
        raise BadInput(f'{where} must be an object with "role" and "content", not {message!r:.80}')
    role = message.get("role")
    if role not in ROLES:
        raise BadInput(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r:.80}")
    kept = {key: text for key, text in message.items() if isinstance(text, str)}
    return {**kept, "content": _content(where, message.get("content"))}


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadInput(f"{where}: content must be text, not {content!r:.80}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise BadInput(
                f'{where}: every part of content must be {{"type": "text", "text": …}}, '
                f"not {part!r:.80}",
                remedy="Only text can be read here, neither images nor audio.",
            )
        texts.append(text)
    return "".join(texts)


def chatml(messages: Sequence[Message], default_system: str = "") -> str:
    """ChatML with the generation prompt, for checkpoints that have no template of their own.

    ``default_system`` is put first when it isn't empty and no system message is there.
    """
    turns = [(message["role"], message["content"]) for message in messages]
    if default_system and (not turns or turns[0][0] != "system"):
        turns.insert(0, ("system", default_system))
    body = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return body + "<|im_start|>assistant\n"


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    bos_token: str = "",
    eos_token: str = "",
    **variables: Any,
) -> str:
    """Render a checkpoint's own Jinja template in a sandbox, with a bound on work and size.

    ``variables`` are handed to the template (such as ``enable_thinking``). Whatever goes wrong
    in it becomes BadInput.
    """
    from qinfer.core.text.template_sandbox import render

    names: dict[str, Any] = {"tools": None, "documents": None, **variables}
    names["messages"] = [dict(message) for message in messages]
    names["add_generation_prompt"] = add_generation_prompt
    names["bos_token"] = bos_token
    names["eos_token"] = eos_token
    return render(template, names)
