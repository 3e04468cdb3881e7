"""What a hostile or broken chat template can do: only fail, soon and with a clear message."""

import resource
import time

import pytest

from qinfer.core.errors import BadInput
from qinfer.core.text.chat import render_chat

MESSAGES = [{"role": "user", "content": "hi"}]
GROW = "{% set ns = namespace(s='aaaaaaaa', l=['a']) %}{% for i in range(60) %}"

ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id') }}",
    "{{ raise_exception.__globals__ }}",
    "{% set x = messages.append(1) %}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ namespace.__init__ }}",
    "{{ messages|attr('__len__') }}",
]
TOO_MUCH = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ ['a'] * 10**9 }}",
    "{{ 10 ** 999 ** 999 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{% set l = range(9000)|list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
    "{% set s = 'a' * 9000 %}{% for i in s %}{% for j in s %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    GROW + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    GROW + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    GROW + "{% set ns.l = ns.l + ns.l %}{% endfor %}",
    GROW + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    GROW + "{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    GROW + "{% set ns.s = ns.s|replace('a', 'aa') %}{% endfor %}",
    GROW + "{% set ns.s = [ns.s, ns.s]|join(ns.s) %}{% endfor %}",
    GROW + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    GROW + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    GROW + "{% set ns.s = ns.s|tojson|tojson|tojson|tojson %}{% endfor %}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l ~ 'x' }}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ '%s' % ns.l }}",
    GROW + "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns }}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW + "{% set ns.s = f(ns.s) %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ ('a\\n' * 1000000)|indent(1000000) }}",
    "{{ ''.join(['b' * 1000000] * 1000000) }}",
    "{{ ('b' * 1000000).join(['a'] * 1000000) }}",
    "{{ messages|map(attribute='role')|map('replace', 'u', 'x' * 30000000)|join|length * 'abc' }}",
    "{{ strftime_now('%999999999Y') }}",
    "{% set x = range(900000)|list %}{% set x = range(900000)|list %}",
    "{% for i in range(100000) %}{{ ('a' * 10000000)|length }}{% endfor %}",
]
BROKEN = [
    ("{% if %}", "TemplateSyntaxError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ x.y }}", "UndefinedError: 'x' is undefined"),
    ("{% include 'x' %}", "no loader"),
    ("{% import 'os' as os %}", "no loader"),
    ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "RecursionError"),
    ("{{ lipsum(9) }}", "lipsum"),
    ("{{ 'a'|center(10**9) }}", "center"),
    ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", ""),
    ("x" * (2**20 + 1), "longer than"),
]


@pytest.mark.parametrize("template", ESCAPES)
def test_escapes_are_named(template: str) -> None:
    with pytest.raises(BadInput, match="tried to escape the sandbox") as caught:
        render_chat(template, MESSAGES)
    assert "--raw" in caught.value.remedy
    assert caught.value.exit_code == 5
    assert MESSAGES == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("template", TOO_MUCH)
def test_work_and_memory_are_bounded(template: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with pytest.raises(BadInput, match=r"checkpoint's chat template failed.*TooMuch") as caught:
        render_chat(template, MESSAGES)
    assert "--raw" in caught.value.remedy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 400 * 1024
    assert time.process_time() - begin < 15  # 3 s where nothing else runs


@pytest.mark.parametrize("template", ["{{ 'a'.ljust(10**9) }}", "{{ '1'.zfill(10**9) }}"])
def test_padding_methods_are_refused(template: str) -> None:
    with pytest.raises(BadInput, match="unsafe"):
        render_chat(template, MESSAGES)


@pytest.mark.parametrize(("template", "message"), BROKEN)
def test_broken_templates(template: str, message: str) -> None:
    with pytest.raises(BadInput, match="checkpoint's chat template failed") as caught:
        render_chat(template, MESSAGES)
    assert message in caught.value.message
    assert "--raw" in caught.value.remedy


def test_the_budget_is_per_render() -> None:
    template = "{% for i in range(600000) %}{% endfor %}ok"
    assert [render_chat(template, MESSAGES) for _ in range(3)] == ["ok"] * 3


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
         "1/2False 2/2True "),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% continue %}{% endif %}{{ m }}{% endfor %}",
         "13"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for x in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hi"),
        ("{{ 'a' ~ 1 ~ none ~ missing ~ true }}", "a1NoneTrue"),
        ("{{ ['b', 'a']|sort|join(', ') }}{{ [1, 2]|join }}", "a, b12"),
        ("{{ messages|map(attribute='role')|join('|') }}", "user"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ {'a': '<é>'}|tojson }}", '{"a": "<é>"}'),
        ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ 'a\nb'|indent(2) }}", "a\n  b"),
        ("{{ 'a-b'|replace('-', '+')|upper }}{{ 'a-b'.replace('-', '') }}", "A+Bab"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '{}{x}'.format(1, x=2) }}{{ 2 ** 10 }}", "a-312" + "1024"),
        ("{{ 3600 * 24 * 365 * 1000 }}", "31536000000"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'a b'.split()[-1] }}{{ ' x '|trim }}", "a, bbx"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}", "<a>"),
        ("{{ messages[0].nothing is defined }}{{ messages[0].nothing or 'd' }}", "Falsed"),
    ],
)  # fmt: skip
def test_what_templates_do_use_works(template: str, expected: str) -> None:
    assert render_chat(template, MESSAGES) == expected


def test_a_long_conversation_renders() -> None:
    template = (
        "{% for m in messages[::-1] %}{% if m.content.startswith('x') %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content|trim }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "w " * 2000}] * 4096
    assert len(render_chat(template, messages)) == 4096 * (6 + 3999)
