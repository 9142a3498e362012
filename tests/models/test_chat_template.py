"""Chat templates: what transformers renders, and nothing that a sandbox should not let out."""

from datetime import datetime
from typing import Any

import pytest

from trefoil_models.chat_template import FALLBACK, MAX_TEXT, ChatTemplate, ChatTemplateError

CHAT = [
    {"role": "system", "content": "Be <kind> & 好."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
]
CHATML = """\
{%- for message in messages %}
    {%- if loop.index0 == 9 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {% generation %}{{ message['content'] | trim }}{% endgeneration %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
{{- tools | tojson(indent=2) }}{% set ns = namespace(n=0) %}
{% for message in messages %}
    {% if message.role == 'user' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + loop.index %}
{% endfor %}
{{ ns.n ~ eos_token ~ undefined_thing }}{{ messages[1:] | map(attribute='role') | join(',') }}
"""


def render(source: str, **extra: object) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}).render(CHAT, extra=extra)


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("tools", [None, [{"name": "f", "好": ["<a>", 1.5, None, True]}]], ids=["bare", "tools"])
def test_renders_what_transformers_renders(prompted: bool, tools: Any) -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    (expected,), _ = transformers.render_jinja_template(
        [CHAT], tools=tools, chat_template=CHATML, add_generation_prompt=prompted, eos_token="</s>"
    )
    extra = {} if tools is None else {"tools": tools}
    ours = ChatTemplate(CHATML, {"eos_token": "</s>"})
    assert ours.render(CHAT, add_generation_prompt=prompted, extra=extra) == expected


def test_tojson_leaves_text_as_it_is() -> None:
    assert render("{{ messages[0] | tojson }}") == '{"role": "system", "content": "Be <kind> & 好."}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'


def test_time_comes_from_the_clock_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render([]) == "26 Jul 2024"


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}]) == "ab"


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {}}], ["x"], 7, [{"type": "text"}]], ids=str)
def test_other_content_is_refused(content: object) -> None:
    with pytest.raises(ChatTemplateError, match="message content"):
        ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": content}])


def test_a_message_without_content_reaches_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert ChatTemplate("{{ messages[0].tool_calls[0].id }}").render([call]) == "1"


def test_extra_variables_cannot_replace_the_messages() -> None:
    assert render("{{ messages | length }}{{ thinking }}", messages=[], thinking=True) == "3True"


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(ChatTemplateError, match=r"refuses these messages: roles must alternate$"):
        render("{{ raise_exception('roles\n must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'].__mro__ }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ range.__self__.left }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_lets_nothing_out(source: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{ strftime_now.__globals__ }}", "{{ range.__self__.__class__ }}"])
def test_hidden_attributes_are_undefined(source: str) -> None:
    assert render(source) == ""


@pytest.mark.parametrize(
    "source", ["{{ messages.append(1) }}", "{{ messages[0].update(role='x') }}", "{{ messages.clear() }}"]
)
def test_arguments_cannot_be_changed(source: str) -> None:
    before = [dict(message) for message in CHAT]
    with pytest.raises(ChatTemplateError):
        render(source)
    assert before == CHAT


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' | format(9999999999, 1) }}",
        "{{ 'a'.center(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a' | indent(10 ** 10, true) }}",
        "{{ {'a': 1} | tojson(indent=10 ** 10) }}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='a') %}"
        "{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set ns = namespace(x=(1,)) %}{% for i in range(25) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        *(
            "{% set ns = namespace(x='a') %}{% for i in range(25) %}{% set ns.x = DOUBLED %}{% endfor %}".replace(
                "DOUBLED", doubled
            )
            for doubled in (
                "ns.x.replace('a', 'aa')",
                "ns.x | replace('a', 'aa')",
                "''.join([ns.x, ns.x])",
                "[ns.x, ns.x] | join",
                "'{0}{0}'.format(ns.x)",
                "'%s%s' % (ns.x, ns.x)",
                "'%s%s' | format(ns.x, ns.x)",
                "[ns.x, ns.x] | tojson",
            )
        ),
        "{{ '{:>99999999}'.format('a') }}",
        "{{ '{:>{}}'.format('a', '99999999') }}",
        "{{ '%99999999d' | format(1) }}",
        "{% set x = 'a' * 1000000 %}{% for i in range(9999) %}{{ x }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_bombs_are_stopped(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="chat template fails"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ nothing.at.all }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ [][3].x }}"]
)
def test_broken_templates_fail_with_one_line(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"^.*chat template[^\n]*$"):
        render(source)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% if true %}\n{{ 1 }\n", "line 2: unexpected '}'"),
        ("\n\n{{ 1 | no_such_filter }}", "line 3: No filter named 'no_such_filter'."),
        ("{{ " + "(" * 20_000, "it is nested too deeply: "),
    ],
    ids=["syntax", "filter", "depth"],
)
def test_fault_of_a_template_is_known_before_it_renders(source: str, fault: str) -> None:
    template = ChatTemplate(source)
    assert (template.fault or "").startswith(fault)
    with pytest.raises(ChatTemplateError, match="chat template is broken"):
        template.render(CHAT)


def test_ordinary_arithmetic_is_left_alone() -> None:
    assert (
        render("{{ 2 ** 8 }} {{ 'ab' * 3 }} {{ 7 % 2 }} {{ '%s!' % 'x' }} {{ [1] + [2] }}") == "256 ababab 1 x! [1, 2]"
    )
    assert (
        render("{{ 'a-b'.replace('-', '+') }} {{ 'a-b' | replace('-', '') }} {{ '{:>3}'.format('c') }}") == "a+b ab   c"
    )
    assert render("{{ ', '.join(['a', 'b']) }} {{ [{'x': 1}, {'x': 2}] | join('+', attribute='x') }}") == "a, b 1+2"
    assert render("{{ '**%s**=%3d 20240101' | format('a', 1) }}") == "**a**=  1 20240101"
    assert render("""{{ '{{"on": {}}} 20240101'.format(1) }}""") == '{"on": 1} 20240101'
    assert len(render("{{ 'a' * n }}", n=MAX_TEXT)) == MAX_TEXT


def test_the_fallback_is_a_plain_dialogue() -> None:
    written = ChatTemplate(FALLBACK).render(CHAT, add_generation_prompt=False)
    assert written == "Be <kind> & 好.\n\nUser: Hi\n\nAssistant: Hello!\n\n"
    assert ChatTemplate(FALLBACK).render(CHAT[1:2]) == "User: Hi\n\nAssistant:"
