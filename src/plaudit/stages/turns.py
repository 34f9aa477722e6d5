"""The chat template against the rows of a run, before the first stage: what it cannot write is found with its row."""

import datetime as dt
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plaudit.data.chat import ChatFormat
from plaudit.data.formats.reader import prompt_of, replies_of
from plaudit.data.templates.bake import DATE, chosen, reads_date
from plaudit.errors import UserError
from plaudit.records import Completion, Message, Prompt, Ranking, Record
from plaudit.run.display import console
from plaudit.run.folder import RECIPE, read_recipe
from plaudit.stages.lengths import spaced
from plaudit.stages.recipe import Recipe
from plaudit.stages.run_data import RunData


def dated(recipe: Recipe, tokenizer: Any) -> Recipe:
    """The recipe with the day on which its run began, where the chat template asks for one that nobody has frozen: the
    day that the run folder has, else today."""
    text = chosen(tokenizer, recipe.data.chat_template)
    given = recipe.data.template_kwargs
    if DATE in given or text is None or not reads_date(text):
        return recipe
    begun = None
    if (recipe.run_folder / RECIPE).is_file():
        begun = read_recipe(recipe.run_folder).get("data", {}).get("template_kwargs", {}).get(DATE)
    dated = {**given, DATE: begun or dt.date.today().isoformat()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"template_kwargs": dated})})


def check_turns(recipe: Recipe, chat: ChatFormat, files: Mapping[Path, Iterable[Record]]) -> list[Prompt]:
    """Have the template write every sequence of roles of every file once; UserError with the file and the row for one
    that it refuses or cuts. Returns a prompt of each sequence in data.prompts."""
    known: set[tuple[str, ...]] = set()
    asked: dict[tuple[str, ...], Prompt] = {}
    for path, rows in files.items():
        for row in rows:
            prompt = prompt_of(row)
            roles = tuple(message.role for message in prompt.messages)
            place = f"{path}: row {prompt.id!r}"
            if path == recipe.data.prompts:
                asked.setdefault(roles, prompt)
            if roles not in known:
                known.add(roles)
                _check_roles(place, chat, prompt, recipe.sft.learn == "all" and path in recipe.demonstrated)
            if marker := chat.rewrites(reply.text for reply in replies_of(row)):
                raise UserError(
                    f"{place}: a reply holds {marker!r}, at which the chat template cuts or rewrites replies, so what "
                    "is learnt would not be what it writes; take it and the thought it closes out, or give a template "
                    "that writes replies as they are with data.chat_template"
                )
            if isinstance(row, Ranking):
                _check_differ(place, chat, row)
    for note in chat.notes:
        console.print(f"Chat template: {note}", soft_wrap=True)
    return list(asked.values())


def say_changed(chat: ChatFormat, data: RunData) -> None:
    """Say how many of the replies that are learnt from its tokenizer cannot write as they are: case that it folds,
    accents that it strips, letters that it does not know."""
    texts = [row.completion for row in spaced(data.demonstrations)]
    texts += [reply.text for ranking in spaced(data.rankings or ()) for reply in ranking.replies]
    written = {text: chat.completion(chat.reply_ids(Completion(text))).text for text in texts}
    if changed := [text for text in texts if written[text] != chat.strip(text)]:
        console.print(
            f"Warning: the tokenizer changes {len(changed) / len(texts):.0%} of the replies that are learnt from "
            f"({changed[0][:60]!r} becomes {written[changed[0]][:60]!r}), so what it loses is neither learnt nor "
            "judged; a model whose tokenizer keeps every text loses nothing",
            soft_wrap=True,
            markup=False,
        )


def _check_roles(place: str, chat: ChatFormat, prompt: Prompt, every_turn: bool) -> None:
    try:
        chat.check_turns(prompt.messages)
        if every_turn:
            chat.conversation_ids([Message(message.role, "Some words.") for message in prompt.messages], "Yes.")
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _check_differ(place: str, chat: ChatFormat, ranking: Ranking) -> None:
    """UserError where a strict pair is the same tokens: the template strips it, or the tokenizer writes both alike."""
    for better, worse in ranking.pairs():
        one, other = ranking.replies[better], ranking.replies[worse]
        # Only what reads alike is tokenised: tokenizers fold case, accents and white space, not words.
        if _letters(one.text) == _letters(other.text) and chat.reply_ids(one) == chat.reply_ids(other):
            raise UserError(
                f"{place}: replies {better + 1} and {worse + 1} (of a pair: chosen and rejected) are ranked apart but "
                f"both become the same tokens, {chat.strip(one.text)[:60]!r}; give both one rank or delete the row"
            )


def _letters(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", text).casefold() if letter.isalnum())
