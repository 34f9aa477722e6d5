"""An exported template says the run's system message by itself: rendered by transformers, as with the message given."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from conftest import CHATML, shaped_tokenizer
from plaudit.data.baked import with_system, without_system
from plaudit.data.chat import ChatFormat
from plaudit.records import Message

SYSTEMS = ("Be kind.", 'Say "no" \\ to {{ braces }} and {% blocks %}.', "Zwei\nZeilen – 日本 👩‍👩‍👧\t\x07'")
USER = {"role": "user", "content": "Tea?"}
REPLY = {"role": "assistant", "content": "Yes."}
TEMPLATES = {
    "chatml": CHATML,
    "blank line first": "\n\n" + CHATML,
    "indented": "    {% if true %}\n    {{ 'x' }}\n    {% endif %}\n" + CHATML,
}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_as_with_the_message_given(
    template: str, system: str, tokenizer_of: Callable[..., PreTrainedTokenizerFast]
) -> None:
    plain, baked = tokenizer_of(template=template), tokenizer_of(template=with_system(template, system))
    for turns in ([USER], [USER, REPLY, USER]):
        given = plain.apply_chat_template(
            [{"role": "system", "content": system}, *turns], tokenize=False, add_generation_prompt=True
        )
        assert system in given
        assert baked.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == given
        own = [{"role": "system", "content": "Own."}, *turns]
        assert baked.apply_chat_template(own, tokenize=False) == plain.apply_chat_template(own, tokenize=False)


def test_it_is_baked_once_and_taken_out_again() -> None:
    once = with_system(CHATML, "Be kind.")
    assert with_system(once, "Be kind.") == once
    assert without_system(once) == CHATML == without_system(CHATML) == with_system(CHATML, None)


def test_plaudit_reads_its_own_export_alike() -> None:
    tokenizer, messages = shaped_tokenizer("chatml"), (Message("user", "Tea?"),)
    expected = ChatFormat(tokenizer, "Be kind.").prompt_ids(messages)
    tokenizer.chat_template = with_system(tokenizer.chat_template, "Be kind.")
    assert ChatFormat(tokenizer, "Be kind.").prompt_ids(messages) == expected
    assert ChatFormat(tokenizer).prompt_ids(messages) == expected
