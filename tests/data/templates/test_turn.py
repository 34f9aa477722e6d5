"""Every way of writing an assistant turn that is in use: the ids of prompt + reply are those of the whole rendering."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from conftest import CHATML
from plaudit.data.chat import ChatFormat
from plaudit.data.templates.bake import TemplateSettings
from plaudit.errors import UserError
from plaudit.records import Completion, Message

Make = Callable[..., PreTrainedTokenizerFast]
ASKED = (Message("user", "Tell me about the sea."),)
LONG = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Tea?"))
OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"


def written(
    turn: str, opens: str, user: str = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
) -> str:
    """A template of an assistant's turn and a generation prompt."""
    each = f"{{% if m.role == 'assistant' %}}{turn}{{% else %}}{user}{{% endif %}}"
    return f"{{% for m in messages %}}{each}{{% endfor %}}{{% if add_generation_prompt %}}{opens}{{% endif %}}"


# Turns after the last user message carry a thought, earlier ones lose it; the generation prompt has none by default.
HYBRID = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}{%- set c = m.content %}"
    "{%- set thought = '' %}{%- if '</think>' in c %}"
    "{%- set thought = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought + '\n</think>\n\n' + c.lstrip('\n') }}{%- else %}"
    "{{- c }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}\n"
)
START = "{{ '<|im_start|>assistant\n' }}"
NEXT = "newline, and the next turn's token ends"
SHAPES = {
    "hybrid thinking": HYBRID,
    "thought opened and closed": written(
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}",
        "{{ '<|im_start|>assistant\n<think>\n' }}",
    ),
    "thought opened only": written(
        "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>assistant\n<think>\n' }}",
    ),
    NEXT: written(
        "{{ '<|im_start|>assistant\n' + m.content }}",
        "{{ '<|im_start|>assistant' }}",
        "{{ '<|im_start|>' + m.role + '\n' + m.content }}",
    ),
    "space before the end": written(
        "{{ ' ' + m.content.strip() + ' <|im_end|>' }}", "", "{{ '[INST] ' + m.content + ' [/INST]' }}"
    ),
    "channel": written(
        "{{ '<|im_start|>assistant<|endoftext|>final<|pad|>' + m.content + '<|im_end|>' }}",
        "{{ '<|im_start|>assistant' }}",
    ),
    "no generation prompt": written("{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}", ""),
    "ends twice": written(
        "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
        "{% if loop.last %}{{ '<|endoftext|>' }}{% endif %}",
        START,
    ),
    "a constant last word": written("{{ '<|im_start|>assistant\n' + m.content + '\nOver.<|im_end|>' }}", START),
    "length of no tools": "{% if tools | length > 0 %}{{ 'Tools: ' }}{% endif %}" + CHATML,
    "contents as parts": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{{ part.text + '' }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}" + START + "{% endif %}"
    ),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("asked", [ASKED, LONG], ids=["one turn", "several turns"])
@pytest.mark.parametrize("reply", ["It is great and lovely.", "a\n\nb", "The price is good.\nNaïve ☕"])
def test_a_turn_is_split_exactly(reply: str, asked: tuple[Message, ...], shape: str, tokenizer_of: Make) -> None:
    """Id for id: the generation prompt is the template's own, and with the reply it is the template's whole text. What
    is saved says the same."""
    tokenizer = tokenizer_of(template=shape)
    original = tokenizer_of(template=shape)
    chat = ChatFormat(tokenizer)
    turns = [message.as_json() for message in asked]
    own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    prompt, ids = chat.prompt_ids(asked), chat.reply_ids(Completion(reply))
    assert prompt == own
    rows = [*turns, {"role": "assistant", "content": reply}]
    if "part.text" in shape:
        rows = [{**row, "content": [{"type": "text", "text": row["content"]}]} for row in rows]
    text = original.apply_chat_template(rows, tools=[] if "tools" in shape else None, tokenize=False)
    whole = original(text, add_special_tokens=False)["input_ids"]
    ends = ids if shape is not SHAPES[NEXT] else ids[:-1]  # there the end is the next turn's first token
    assert whole[: len(prompt + ends)] == prompt + ends
    assert chat.completion(ids) == Completion(reply)
    again = ChatFormat(tokenizer)
    assert again.tokenizer.chat_template == chat.tokenizer.chat_template
    assert (again.prompt_ids(asked), again.reply_ids(Completion(reply)), again.notes) == (prompt, ids, [])


def test_the_empty_thought_ends_the_prompt(tokenizer_of: Make) -> None:
    """Qwen3's own switch gives the same prompt as what is learnt from its turns."""
    learnt = ChatFormat(tokenizer_of(template=HYBRID))
    switched = ChatFormat(tokenizer_of(template=HYBRID), template=TemplateSettings(kwargs={"enable_thinking": False}))
    text = learnt.tokenizer.decode(learnt.prompt_ids(ASKED))
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert learnt.prompt_ids(ASKED) == switched.prompt_ids(ASKED)
    assert switched.notes == []
    assert "before every reply" in learnt.notes[0]


def test_a_thought_that_no_finished_turn_has_is_left_out_of_the_prompt(tokenizer_of: Make) -> None:
    chat = ChatFormat(tokenizer_of(template=SHAPES["thought opened only"]))
    assert chat.tokenizer.decode(chat.prompt_ids(ASKED)).endswith("<|im_start|>assistant\n")
    assert "<think>" in chat.notes[0]


def test_the_token_that_opens_the_next_turn_may_end_this_one(tokenizer_of: Make) -> None:
    tokenizer = tokenizer_of(template=SHAPES[NEXT])
    chat = ChatFormat(tokenizer)
    assert chat.end == "<|im_start|>"
    ids, learnt = chat.conversation_ids(LONG, "Yes.")
    turns = [message.as_json() for message in (*LONG, Message("assistant", "Yes."))]
    whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
    assert ids[:-1] == whole
    assert sum(learnt) == len(chat.reply_ids(Completion("Hello."))) + len(chat.reply_ids(Completion("Yes.")))


def test_a_reply_that_the_template_would_cut_is_named(tokenizer_of: Make) -> None:
    chat = ChatFormat(tokenizer_of(template=HYBRID))
    assert chat.rewrites(["Fine.", "<think>\nI see.\n</think>\n\nYes."]) == "</think>"
    assert chat.rewrites(["Fine.", "system and assistant"]) is None


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (written("{{ '<|im_start|>assistant\n' + m.content }}", START), "no special token ends the turn"),
        (written("{{ m.content | upper + '<|im_end|>' }}", ""), "it changes the reply"),
        (written("{{ m.content[:200] + '<|im_end|>' }}", ""), "it changes the reply: 'Zebras"),
        (written("{{ m.content.replace('&', 'and') + '<|im_end|>' }}", ""), "it changes the reply: 'Zebras"),
        (written("{{ m.content.split() | join(' ') + '<|im_end|>' }}", ""), "it changes white space in a reply"),
        (
            written("{{ m.content | length ~ ':' ~ m.content ~ '<|im_end|>' }}", ""),
            "differs from reply to reply",
        ),
    ],
)
def test_what_is_in_the_way_is_named_with_the_way_on(template: str, why: str, tokenizer_of: Make) -> None:
    if "no special" in why:
        template = template.replace("'<|im_start|>' + m.role", "'User' + m.role")
    with pytest.raises(UserError, match=r"cannot be masked exactly") as refused:
        ChatFormat(tokenizer_of(template=template))
    assert why in str(refused.value)
    assert "data.chat_template" in str(refused.value)
    assert "data.template_kwargs" in str(refused.value)


DROPS = {
    "once a reply follows": CHATML.replace(
        "{{ '<|im_start|>' + message",
        "{% if message.role != 'system' or messages[-1].role != 'assistant' %}{{ '<|im_start|>' + message",
    ).replace("<|im_end|>' + '\n' }}", "<|im_end|>' + '\n' }}{% endif %}"),
    "leaves out the system message;": CHATML.replace("in messages %}", "in messages if message.role != 'system' %}"),
}


@pytest.mark.parametrize(("why", "template"), DROPS.items())
def test_a_template_that_drops_the_system_text_says_so(why: str, template: str, tokenizer_of: Make) -> None:
    chat = ChatFormat(tokenizer_of(template=template))
    chat.check_turns(ASKED)
    with pytest.raises(UserError, match=why):
        chat.check_turns(LONG)


def test_an_error_inside_a_template_is_no_traceback(tokenizer_of: Make) -> None:
    with pytest.raises(UserError, match=r"the chat template refuses the turns user.*TypeError"):
        ChatFormat(tokenizer_of(template="{{ documents | length + none }}" + CHATML))


def test_another_special_token_can_end_turns(tokenizer_of: Make) -> None:
    """In every turn, and in the template that travels with the tokenizer."""
    chat = ChatFormat(tokenizer_of(), template=TemplateSettings(end="<|endoftext|>"))
    assert (chat.end, chat.eos_id) == ("<|endoftext|>", chat.tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    assert chat.reply_ids(Completion("Yes."))[-1] == chat.eos_id
    assert "<|im_end|>" not in chat.tokenizer.chat_template
    assert ChatFormat(chat.tokenizer).end == "<|endoftext|>"


@pytest.mark.parametrize(
    ("end", "template", "said"),
    [
        ("<|over|>", CHATML, "'<|over|>' is no special token"),
        ("<|endoftext|>", CHATML.replace("<|im_end|>", "<|im_' + 'end|>"), "does not write its '<|im_end|>' as text"),
    ],
)
def test_an_end_that_cannot_be_put_there_is_refused(end: str, template: str, said: str, tokenizer_of: Make) -> None:
    with pytest.raises(UserError) as refused:
        ChatFormat(tokenizer_of(template=template), template=TemplateSettings(end=end))
    assert str(refused.value).startswith("data.end_of_turn: ") and said in str(refused.value)
