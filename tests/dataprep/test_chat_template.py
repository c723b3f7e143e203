"""Chat templates: programs by strangers. What is learnt, and that they can do no harm."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

pytest.importorskip("jinja2")

from llmcheck.errors import UserError
from llmcheck_trainer.dataprep.chat_template import ChatTemplate
from llmcheck_trainer.dataprep.rows import BadRowError, Sample, Turn

ENDS = ("<s>", "</s>", "<|im_end|>")
PLAIN = (
    "{%- for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
MARKED = (
    "{%- for m in messages %}{{ '<s>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{{ '\n' }}{%- endfor %}"
)
TALK = [Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "R"), Turn("assistant", "B")]
LEARNT = [
    ("<s>user\nQ</s>\n<s>assistant\n", False),
    ("A</s>", True),
    ("\n<s>user\nR</s>\n<s>assistant\n", False),
    ("B</s>", True),
    ("\n", False),
]


def open_template(text: str) -> ChatTemplate:
    return ChatTemplate("test", text, variables={"bos_token": "<s>", "eos_token": "</s>"}, ends=ENDS, date="2026-01-02")


def render(text: str, *talks: list[Turn], tools: Any = None) -> list[Any]:
    with open_template(text) as template:
        answers = template.render([Sample(talk, tools=tools) for talk in talks])
        return [a.detail if isinstance(a, BadRowError) else [(part, learnt) for part, learnt, _ in a] for a in answers]


@pytest.mark.parametrize("text", [PLAIN, MARKED], ids=["by prefixes", "by marks"])
def test_answers_and_their_ends_are_learnt(text: str) -> None:
    assert render(text, TALK) == [LEARNT]


@pytest.mark.parametrize("text", [PLAIN, MARKED], ids=["by prefixes", "by marks"])
def test_an_answer_of_weight_zero_is_not_learnt(text: str) -> None:
    (parts,) = render(text, [TALK[0], TALK[1]._replace(learn=False), *TALK[2:]])
    assert "".join(part for part, _ in parts) == "".join(part for part, _ in LEARNT)
    assert [part for part, learnt in parts if learnt] == ["B</s>"]


def test_an_end_token_outside_the_marks_is_learnt_too() -> None:
    outside = MARKED.replace("{{ m['content'] + eos_token }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ eos_token }}")
    assert outside != MARKED
    assert render(outside, TALK) == [LEARNT]


def test_a_template_that_shortens_earlier_answers() -> None:
    """As templates of reasoning models do: what was thought is left out of all but the last answer."""
    text = (
        "{%- for m in messages %}{{ '<s>' + m['role'] + '\n' }}"
        "{%- if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
        "{{ m['content'] + '</s>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    (parts,) = render(text, TALK)
    assert [part for part, learnt in parts if learnt] == ["A</s>", "<think></think>B</s>"]


def test_a_prompt_that_opens_a_thought_which_answers_lack() -> None:
    """As templates of reasoning models do: what the prompt and the answer share is the prompt."""
    text = PLAIN.replace("{{ '<s>assistant\n' }}", "{{ '<s>assistant\n<think>\n' }}")
    assert text != PLAIN
    assert render(text, TALK) == [LEARNT]
    with_thoughts = text.replace(
        "{{ '<s>' + m['role'] + '\n' +", "{{ '<s>' + m['role'] + '\n' + ('<think></s>' if m['role'] == 'assistant' else '') +"
    )
    (parts,) = render(with_thoughts, TALK)
    assert [part for part, learnt in parts if learnt] == ["<think></s>A</s>", "<think></s>B</s>"]


def test_another_end_token_on_the_last_answer() -> None:
    text = (
        "{%- for m in messages %}{{ '<s>' + m['role'] + '\n' + ('<say>' if m['role'] == 'assistant' else '') + m['content'] }}"
        "{{ '</s>' if loop.last and m['role'] == 'assistant' else '<|im_end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    (parts,) = render(text, TALK)
    assert [part for part, learnt in parts if learnt] == ["<say>A<|im_end|>", "<say>B</s>"]


@pytest.mark.parametrize("text", [PLAIN, MARKED], ids=["by prefixes", "by marks"])
def test_an_answer_that_the_template_leaves_out_is_not_learnt(text: str) -> None:
    """As templates do that want the content in parts: nothing but the end token would be learnt."""
    with open_template(text.replace("m['content']", "(m['content'] if m['role'] == 'user' else '')")) as template:
        (parts,) = template.render([Sample(TALK)])
        assert not any(learnt for _, learnt, _ in parts)
        assert (template.num_missing, template.num_endless) == (2, 0)


def test_an_answer_that_cannot_be_told_from_the_rest_is_counted() -> None:
    text = "{{ messages | length }}:{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with open_template(text) as template:
        template.render([Sample(TALK)])
        assert template.num_missing == 2


def test_the_date_is_the_one_asked_for() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}{{ messages[1]['content'] }}", TALK[:2])[0][0][0].startswith("02 Jan 2026")


def test_tools_and_json_are_as_in_transformers() -> None:
    (parts,) = render("{{ tools | tojson }}{% for m in messages %}{{ m['content'] }}{% endfor %}", TALK, tools=[{"a": "é<&"}])
    assert parts[0][0].startswith('[{"a": "é<&"}]')


def test_dates_of_a_table_are_text_to_the_template() -> None:
    turn = Turn("assistant", "A", extra={"when": datetime.date(2026, 1, 2)})
    assert render("{% for m in messages %}{{ m['content'] + m['when'] }}{% endfor %}", [turn]) == [[("A2026-01-02", True)]]


def test_what_the_template_refuses_is_a_bad_row_and_the_next_goes_on() -> None:
    text = PLAIN.replace("{%- for", "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}{%- for", 1)
    first, second = render(text, TALK[1:], TALK)
    assert "user first" in first
    assert second == LEARNT


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "power"),
        ("{{ 'x' * 99999999999 }}", "without measure"),
        ("{% for i in range(100000) %}{{ 'x' * 10000 }}{% endfor %}", "more text than a row may have"),
        ("{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}", "it took"),
        ("{{ '%99999999999d' % 1 }}", "memory"),
        ("{{ open('/etc/passwd') }}", "undefined"),
        ("{% include '/etc/passwd' %}", "TypeError"),
    ],
)
def test_a_hostile_template_is_refused(text: str, why: str) -> None:
    (refused,) = render(text, TALK)
    assert why in refused


def test_a_template_without_end_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="the chat template fails") as caught:
        render(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
            *[TALK] * 9,
        )
    assert "rows took longer" in caught.value.why
    assert time.monotonic() - start < 60


def test_a_template_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match="cannot be compiled"):
        open_template("{% if %}")


def test_a_renderer_that_ended_is_told() -> None:
    with open_template(PLAIN) as template:
        template._process.kill()
        with pytest.raises(UserError, match="ended"):
            template.render([Sample(TALK)])
