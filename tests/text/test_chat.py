"""Conversations: checked, in ChatML, and through templates of the Qwen family's style."""

import json

import pytest

from qinfer.core.errors import BadInput
from qinfer.core.text.chat import MAX_MESSAGES, chatml, check_messages, render_chat

USER = {"role": "user", "content": "Hi <b>你好</b>"}
TALK = [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
SYSTEM = {"role": "system", "content": "Be brief."}

QWEN1_5 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content']}}"
    "{% if (loop.last and add_generation_prompt) or not loop.last %}"
    "{{ '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) \
or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string \
and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
BODY = (
    "<|im_start|>user\nHi <b>你好</b><|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    "<|im_start|>user\nBye<|im_end|>\n"
)
ASSISTANT = "<|im_start|>assistant\n"
BRIEF = "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "default"),
    [
        (QWEN1_5, "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"),
        (QWEN2, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"),
        (QWEN2_5, "<|im_start|>system\nYou are Qwen.<|im_end|>\n"),
        (QWEN3, ""),
    ],
)
def test_qwen_templates(template: str, default: str) -> None:
    assert render_chat(template, TALK) == default + BODY + ASSISTANT
    assert render_chat(template, [SYSTEM, *TALK]) == BRIEF + BODY + ASSISTANT
    if template is not QWEN1_5:
        assert render_chat(template, TALK, add_generation_prompt=False) == default + BODY


def test_qwen1_5_leaves_a_last_message_open_without_generation_prompt() -> None:
    expected = BRIEF + "<|im_start|>user\nHi <b>你好</b>"
    assert render_chat(QWEN1_5, [SYSTEM, USER], add_generation_prompt=False) == expected


def test_tools_and_thinking() -> None:
    tool = {"name": "wetter", "description": "Straße <&> 'x'"}
    text = render_chat(QWEN2_5, [{"role": "tool", "content": "5"}], tools=[tool])
    assert text == (
        "<|im_start|>system\n\n" + json.dumps(tool, ensure_ascii=False) + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n" + ASSISTANT
    )
    thought = [USER, {"role": "assistant", "content": "<think>hm</think>\n\nyes"}]
    assert "<|im_start|>assistant\nyes<|im_end|>" in render_chat(QWEN3, thought)
    assert render_chat(QWEN3, [USER], enable_thinking=False).endswith("<think>\n\n</think>\n\n")


def test_special_tokens_reach_the_template() -> None:
    text = render_chat("{{ bos_token }}|{{ eos_token }}", [USER], bos_token="<s>", eos_token="</s>")
    assert text == "<s>|</s>"


def test_chatml() -> None:
    assert chatml(TALK) == BODY + ASSISTANT
    assert chatml(TALK, "Be brief.") == BRIEF + BODY + ASSISTANT
    assert chatml([SYSTEM, *TALK], "Another") == BRIEF + BODY + ASSISTANT
    assert chatml(TALK) == render_chat(QWEN3, TALK)


def test_check_messages_joins_parts_and_keeps_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    value = [{"role": "user", "content": parts, "name": "Ann", "x": 5}]
    assert check_messages(value) == [{"role": "user", "content": "ab", "name": "Ann"}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "non-empty list"),
        ({"role": "user"}, "non-empty list"),
        ("hi", "non-empty list"),
        ([5], "message 1 must be an object"),
        ([USER, {"role": "robot", "content": ""}], "message 2: role must be one of system, user"),
        ([{"content": "x"}], "message 1: role"),
        ([{"role": ["user"], "content": "x"}], "message 1: role"),
        ([{"role": "user"}], "content must be text, not None"),
        ([{"role": "user", "content": 5}], "content must be text, not 5"),
        ([{"role": "user", "content": [{"type": "image"}]}], "every part"),
        ([{"role": "user", "content": ["x"]}], "every part"),
        ([USER] * (MAX_MESSAGES + 1), "at most 4096"),
    ],
)
def test_bad_messages(value: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        check_messages(value)
