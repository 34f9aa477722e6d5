"""The template of a run: chosen, its variables set and its date frozen, all in the text of the template itself.

What a run settles is written into the template as its first lines, so it travels wherever the tokenizer goes: into the
SFT model, the reward model's contract (its hash), every export. A template of which all this is true already is left
as it is, so opening a saved model changes nothing, on whatever day.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError

from plaudit.errors import UserError

_OWN = {"messages", "add_generation_prompt", "raise_exception", "namespace", "dict"}
DATE = "strftime_now"
"""The function that gives templates the date; as a variable that a recipe sets, its value is a day."""
_FROZEN = re.compile(r"^\{% macro strftime_now\(format\) %\}.*\{% endmacro %\}\n", re.MULTILINE)
_DIRECTIVE = re.compile(r"(?<!\{)%([-_0^#]?[aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZC])")
EMPTY = {name: f"{{% set {name} = {name} or [] %}}\n" for name in ("tools", "documents")}
"""For templates that take the length of what transformers passes as None."""
PARTS = (
    "{% set rewritten = namespace(turns=[]) %}{% for turn in messages %}{% set rewritten.turns = rewritten.turns + "
    "[dict(turn, content=[{'type': 'text', 'text': turn['content']}]) if turn['content'] is string else turn] %}"
    "{% endfor %}{% set messages = rewritten.turns %}\n"
)
"""For templates that read a content only as a list of parts."""


@dataclass(frozen=True)
class TemplateSettings:
    """What a recipe says of the chat template: a file or a name instead of the tokenizer's own, its variables, and the
    special token that ends a turn in place of the template's."""

    chat_template: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    end: str | None = None


OWN = TemplateSettings()


def chosen(tokenizer: Any, wanted: str | None) -> str | None:
    """The text of the template: of a file, of one of several named ones, or the tokenizer's; None where it has none."""
    own = tokenizer.chat_template
    if isinstance(own, list):
        own = {one["name"]: one["template"] for one in own}
    names = sorted(own) if isinstance(own, dict) else []
    if wanted is not None and wanted in names:
        return str(own[wanted])
    if wanted is not None:
        path = Path(wanted)
        if not path.is_file():
            known = f"the tokenizer's templates are named {', '.join(names)}" if names else "the tokenizer names none"
            raise UserError(f"data.chat_template: {wanted}: no such file, and no such template: {known}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"data.chat_template: {wanted}: not UTF-8 text: {error}; save it as UTF-8") from error
    if names and "default" not in own:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has the chat templates {', '.join(names)} and none named "
            "default; choose one with data.chat_template: NAME"
        )
    return str(own["default"] if names else own) if own else None


def names(template: str) -> set[str]:
    """The names that stand in a template's code; UserError where it is no Jinja."""
    try:
        return {value for _, kind, value in Environment().lex(template) if kind == "name"}
    except TemplateSyntaxError as error:
        raise UserError(f"the chat template cannot be read: line {error.lineno}: {error.message}") from error


def reads_date(template: str) -> bool:
    """Whether a template asks for today's date, which no earlier run has frozen."""
    return DATE in names(template) and not _FROZEN.search(template)


def baked(template: str, settings: TemplateSettings) -> str:
    """The template with the settings' variables as its first lines, and a day where it asks for one: the one that they
    give, else that of an earlier run whose model this one starts from, else today."""
    variables = dict(settings.kwargs)
    day = variables.pop(DATE, None)
    for name, value in variables.items():
        template = _set(template, name, value)
    if day is not None:
        if DATE not in names(template):
            raise UserError(f"data.template_kwargs: the chat template writes no date; leave {DATE} out")
        template = _FROZEN.sub("", template)
    if reads_date(template):
        template = _frozen(template, dt.date.today() if day is None else _day(day)) + template
    return template


def _day(value: object) -> dt.date:
    try:
        return value if isinstance(value, dt.date) else dt.date.fromisoformat(str(value))
    except ValueError as error:
        raise UserError(f"data.template_kwargs: {DATE} must be a day like 2026-03-07, found {value!r}") from error


def _set(template: str, name: str, value: Any) -> str:
    if not name.isidentifier() or name in _OWN:
        raise UserError(f"data.template_kwargs: {name!r} is no variable that a recipe can set")
    if name not in names(template):
        raise UserError(
            f"data.template_kwargs: the chat template reads no variable {name!r}; remove it or mend its name"
        )
    if isinstance(value, dt.date):  # as YAML reads one
        value = value.isoformat()
    return with_variable(template, name, value)


def with_variable(template: str, name: str, value: Any) -> str:
    """The template with a variable set in its first line."""
    # An earlier run's line would stand below this one and win.
    template = re.sub(rf"^\{{% set {name} = .* %\}}\n", "", template, count=1, flags=re.MULTILINE)
    # Python's literals are Jinja's too; the newline is eaten by trim_blocks, so the template begins as it did.
    return f"{{% set {name} = {value!r} %}}\n{template}"


def _frozen(template: str, day: dt.date) -> str:
    """`strftime_now` as a macro that knows one day: each directive that stands in the template, replaced."""
    moment = dt.datetime.combine(day, dt.time())
    found = dict.fromkeys(_DIRECTIVE.findall(template))
    # What spells others is replaced before them, and a doubled sign is no directive.
    pairs = [(f"%{letter}", moment.strftime(f"%{letter}")) for letter in found]
    if "%%" in template:
        pairs = [("%%", "\ue002"), *pairs, ("\ue002", "%")]
    filters = "".join(f" | replace({old!r}, {new!r})" for old, new in pairs)
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n"


def with_opening(template: str, opening: str) -> str:
    """The template with more text at the end of its generation prompt."""
    return f"{template.removesuffix(chr(10))}{{%+ if add_generation_prompt %}}{{{{ {opening!r} }}}}{{% endif %}}"


def without_ending(template: str, ending: str) -> str:
    """The template without the text that ends its generation prompt."""
    text = template.removesuffix("\n")
    cut = f"written[:-{len(ending)}] if add_generation_prompt and written.endswith({ending!r}) else written"
    return f"{{% set written %}}\n{text}{{%+ endset %}}{{{{ {cut} }}}}"
