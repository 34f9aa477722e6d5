"""Code in colours: Pygments reads it, and few of its kinds of token get a class of the page's style sheet."""

from html import escape
from typing import Any

from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String
from pygments.util import ClassNotFound

_KINDS = (
    (Comment, "comment"),
    (Keyword, "keyword"),
    (String, "string"),
    (Number, "number"),
    (Name.Function, "name"),
    (Name.Class, "name"),
)
CLASSES = frozenset(name for _, name in _KINDS)
_LONGEST = 20_000
"""Characters: longer code is shown in one colour."""


def coloured(code: str, language: str = "") -> str:
    """The code as HTML with a <span> around what has a colour; its characters as they are."""
    if not language or len(code) > _LONGEST:
        return escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(code)
    parts = [(_class_of(kind), escape(text)) for kind, text in lex(code, lexer)]
    return "".join(f'<span class="{name}">{text}</span>' if name and text.strip() else text for name, text in parts)


def _class_of(kind: Any) -> str | None:
    return next((name for parent, name in _KINDS if kind in parent), None)
