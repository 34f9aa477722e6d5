"""What a run settles about its chat template stands in the template's own text."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from conftest import CHATML
from plaudit.data.chat import ChatFormat
from plaudit.data.templates.bake import TemplateSettings, baked, reads_date
from plaudit.errors import UserError
from plaudit.records import Message

Make = Callable[..., PreTrainedTokenizerFast]
HELLO = (Message("user", "Hi"),)
DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
FALLS_BACK = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{{ 'Today: ' + date_string + '\n' }}" + CHATML
)


@pytest.fixture
def another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as templates see it."""

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Later":
            return cls(2031, 12, 30)

    monkeypatch.setattr(chat_template_utils, "datetime", Later)


def text_of(tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.apply_chat_template([HELLO[0].as_json()], tokenize=False, add_generation_prompt=True)


@pytest.mark.row(33)
@pytest.mark.parametrize("template", [DATED, FALLS_BACK], ids=["asks", "falls back"])
@pytest.mark.usefixtures("another_day")
def test_row_33_the_date_is_frozen_in_the_template(template: str, tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of(template=template)
    assert text_of(tokenizer).startswith("Today: 30 Dec 2031\n")
    ChatFormat(tokenizer, template=TemplateSettings(kwargs={"strftime_now": "2026-03-07"}))
    assert text_of(tokenizer).startswith("Today: 07 Mar 2026\n")
    frozen = tokenizer.chat_template
    assert ChatFormat(tokenizer).tokenizer.chat_template == frozen  # whoever opens it later, on whatever day
    ChatFormat(
        tokenizer, template=TemplateSettings(kwargs={"strftime_now": dt.date(2027, 1, 1)})
    )  # a later run that says so
    assert text_of(tokenizer).startswith("Today: 01 Jan 2027\n")


@pytest.mark.parametrize(
    "format", ["%d %b %Y", "%A, %-d. %B %y", "%Y-%m-%dT%H:%M:%S", "100%% on day %j", "%D|%F", "%e %p"]
)
def test_every_format_is_pythons(format: str, tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of(template=f"{{{{ strftime_now('{format}') + '\n' }}}}" + CHATML)
    ChatFormat(tokenizer, template=TemplateSettings(kwargs={"strftime_now": "2026-03-07"}))
    assert text_of(tokenizer).partition("\n")[0] == dt.datetime(2026, 3, 7).strftime(format)


def test_a_template_begins_as_it_did_under_the_frozen_lines(tokenizer_of: Make) -> None:
    """White space control sees the same line starts."""
    template = "\n  {% if true %}\nA {{ strftime_now('%Y') }} {{ thing }}\n  {% endif %}\n" + CHATML
    plain = tokenizer_of(template=template.replace("strftime_now('%Y')", "'2026'").replace("thing", "'x'"))
    frozen = tokenizer_of(
        template=baked(template, TemplateSettings(kwargs={"thing": "x", "strftime_now": "2026-03-07"}))
    )
    assert text_of(plain) == text_of(frozen)


@pytest.mark.parametrize("value", [True, False, 3, 1.5, 'it\'s {{ }} %} "so" ☕', ["a", 1], {"k": [True]}, None])
def test_variables_are_set_in_the_template(value: object, tokenizer_of: Make) -> None:
    template = "{% if thing is defined %}{{ thing | tojson }}{% endif %}" + CHATML
    passed, set_ = tokenizer_of(template=template), tokenizer_of(template=template)
    expected = passed.apply_chat_template([HELLO[0].as_json()], tokenize=False, add_generation_prompt=True, thing=value)
    ChatFormat(set_, template=TemplateSettings(kwargs={"thing": value}))
    assert text_of(set_) == expected


def test_a_later_run_sets_a_variable_anew() -> None:
    first = baked("{{ thing }}", TemplateSettings(kwargs={"thing": 1}))
    assert baked(first, TemplateSettings(kwargs={"thing": 2})) == "{% set thing = 2 %}\n{{ thing }}"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            TemplateSettings(kwargs={"enable_thinkin": False}),
            r"data\.template_kwargs.*reads no variable 'enable_thinkin'",
        ),
        (TemplateSettings(kwargs={"messages": []}), r"data\.template_kwargs: 'messages'"),
        (
            TemplateSettings(kwargs={"strftime_now": "2026-03-07"}),
            r"data\.template_kwargs: the chat template writes no date",
        ),
        (TemplateSettings(chat_template="nowhere.jinja"), r"data\.chat_template: nowhere\.jinja: no such file"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(settings: TemplateSettings, why: str, tokenizer_of: Make) -> None:
    with pytest.raises(UserError, match=why):
        ChatFormat(tokenizer_of(), template=settings)


def test_a_file_takes_the_templates_place(tokenizer_of: Make, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(CHATML.replace("You are tiny.", "Sois bref."), encoding="utf-8")
    tokenizer = tokenizer_of()
    ChatFormat(tokenizer, template=TemplateSettings(chat_template=str(file)))
    assert "Sois bref." in text_of(tokenizer)


def test_of_several_templates_one_is_chosen(tokenizer_of: Make) -> None:
    named = {"default": CHATML, "rag": CHATML.replace("You are tiny.", "You search.")}
    tokenizer = tokenizer_of(template=dict(named))
    assert "You are tiny." in ChatFormat(tokenizer).tokenizer.chat_template
    tokenizer = tokenizer_of(template=dict(named))
    ChatFormat(tokenizer, template=TemplateSettings(chat_template="rag"))
    assert "You search." in text_of(tokenizer)
    tokenizer = tokenizer_of(template={"rag": CHATML, "tool_use": CHATML})
    with pytest.raises(
        UserError, match=r"rag, tool_use and none named default; choose one with data\.chat_template: NAME"
    ):
        ChatFormat(tokenizer)


def test_who_asks_for_the_date() -> None:
    assert reads_date(DATED)
    assert not reads_date(CHATML)
    assert not reads_date(baked(DATED, TemplateSettings(kwargs={"strftime_now": "2026-03-07"})))
