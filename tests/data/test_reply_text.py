"""The text of sampled ids: nothing that was written is lost, nothing else is added, and what changes is counted.

Expected texts are spelt by hand, byte by byte: a byte-level tokenizer has an id for every byte.
"""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from conftest import END, EOS, PAD, START
from plaudit.data.chat import ChatFormat
from plaudit.records import Completion

Make = Callable[..., PreTrainedTokenizerFast]


def byte_ids(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """One id a byte, by GPT-2's table of printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return tokenizer.convert_tokens_to_ids([letters[byte] for byte in data])


def test_a_pad_token_that_is_a_word_stays_in_the_text(tokenizer_of: Make) -> None:
    """A tokenizer may name any token as its pad token; "!" is still what somebody wrote."""
    tokenizer = tokenizer_of(pad="!")
    chat = ChatFormat(tokenizer)
    ids = [*byte_ids(tokenizer, b"Oh! No!!"), chat.eos_id]
    assert chat.completion(ids) == Completion("Oh! No!!")
    assert chat.completion(ids[:-1]) == Completion("Oh! No!!", finished=False)
    assert chat.pad_id != tokenizer.convert_tokens_to_ids("!")


def test_control_tokens_leave_no_text(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of()
    chat = ChatFormat(tokenizer)
    start, pad, end = tokenizer.convert_tokens_to_ids([START, PAD, END])
    ids = [start, *byte_ids(tokenizer, b"a"), pad, *byte_ids(tokenizer, b"b"), end, chat.eos_id]
    assert chat.completion(ids) == Completion("ab")
    assert chat.control == {start, pad, end, chat.eos_id}


@pytest.mark.parametrize("whole", ["é", "☕", "👩"])
def test_a_character_that_the_limit_cut_is_left_out(whole: str, tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of()
    chat, data = ChatFormat(tokenizer), whole.encode()
    for kept in range(1, len(data)):
        ids = byte_ids(tokenizer, b"Tea " + data[:kept])
        assert chat.completion(ids) == Completion("Tea ", finished=False)
        assert chat.changed_share([ids]) == 1.0
    assert chat.completion(byte_ids(tokenizer, b"Tea " + data)) == Completion(f"Tea {whole}", finished=False)


def test_a_replacement_character_that_was_written_stays(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of()
    assert ChatFormat(tokenizer).completion(byte_ids(tokenizer, "?\ufffd".encode())).text == "?\ufffd"


def test_spaces_before_marks_stay(tokenizer_of: Make) -> None:
    """A tokenizer may ask for its texts to be tidied up; then "a ." would be shown as "a."."""
    tokenizer = tokenizer_of()
    tokenizer.clean_up_tokenization_spaces = True
    assert ChatFormat(tokenizer).completion(byte_ids(tokenizer, b"a . do n't ,")).text == "a . do n't ,"


def test_the_share_of_changed_texts_by_hand(tokenizer_of: Make) -> None:
    """Of four replies two become other ids: " the" byte by byte, which is one token, and a control token amid text."""
    tokenizer = tokenizer_of()
    chat = ChatFormat(tokenizer)
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1
    same = [*tokenizer(" the sea", add_special_tokens=False)["input_ids"], chat.eos_id]
    spelt = [*byte_ids(tokenizer, b" the"), chat.eos_id]
    amid = [same[0], tokenizer.convert_tokens_to_ids(PAD), *same[1:]]
    assert chat.changed_share([same, same[:-1], spelt, amid]) == 0.5


def test_a_reply_ends_where_the_model_ends_a_text(tokenizer_of: Make) -> None:
    """`ends`: the template's end of turn, and the control tokens among what the model's settings name."""
    tokenizer = tokenizer_of()
    end, word = tokenizer.convert_tokens_to_ids(END), byte_ids(tokenizer, b"x")[0]
    chat = ChatFormat(tokenizer, ends=[end, word, 10**6])
    assert chat.eos_id == tokenizer.convert_tokens_to_ids(EOS)
    assert chat.ends == {chat.eos_id, end}
    assert chat.completion([word, end]) == Completion("x")
    assert chat.completion([word, word]) == Completion("xx", finished=False)
    assert chat.pad_id not in chat.ends
    assert ChatFormat(tokenizer).completion([word, end]) == Completion("x", finished=False)
