"""A model plugin's chat prompt as a template file, for where that plugin is not there."""

from __future__ import annotations

import re
from pathlib import Path

from qinfer.core.errors import Unsupported
from qinfer.core.registry.hooks import Hooks
from qinfer.core.text.chat import render_chat
from qinfer.core.types import ModelConfig

FILE = "chat_template.jinja"

_CHATML = (
    "{%% if messages[0]['role'] != 'system' %%}%s{%% endif %%}"
    "{%% for message in messages %%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}"
)
_USER, _SYSTEM = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be brief."}
_PROBES = ([_USER], [_SYSTEM, _USER], [_USER, {"role": "assistant", "content": "Hi"}, _USER])


def write_chat_template(folder: Path, hooks: Hooks, config: ModelConfig) -> None:
    """Write ChatML with the plugin's own system prompt, if that is what the plugin writes.

    A plugin without the hook leaves nothing to write. Raises Unsupported for one that writes
    prompts of another form.
    """
    prompts = [hooks.chat_prompt(config, probe) for probe in _PROBES]
    if None in prompts:
        return
    system = re.match(r"<\|im_start\|>system\n.*?<\|im_end\|>\n", prompts[0] or "", re.DOTALL)
    literal = repr(system[0]) if system else "''"
    template = _CHATML % f"{{{{ {literal} }}}}"
    if [render_chat(template, probe) for probe in _PROBES] != prompts:
        raise Unsupported(
            f"{hooks.record('model').label} writes chat prompts in a form of its own, which an "
            "exported folder cannot hold",
            remedy=f"Put the template into the checkpoint's folder as {FILE}.",
        )
    (folder / FILE).write_text(template, encoding="utf-8")
