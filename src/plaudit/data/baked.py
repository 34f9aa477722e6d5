"""A chat template that says the run's system message by itself: who has the exported model has no recipe."""

import json

_OPEN = "{#- Says the system message that the model was trained with where a conversation has none. #}\n"
_CLOSE = "{#- What follows is the template that it was trained with. #}\n"


def with_system(template: str, system: str | None) -> str:
    """`template`, where a conversation that has no system message opens with `system`; with None as it is.

    A message of the conversation's own takes its place, as in `ChatFormat`. The lines end where a template engine that
    trims its blocks (transformers', vLLM's, llama.cpp's) leaves nothing of them.
    """
    template = without_system(template)
    if system is None:
        return template
    message = f"{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}"
    return (
        f"{_OPEN}{{%- if not messages or messages[0]['role'] != 'system' %}}\n"
        f"{{%- set messages = [{message}] + (messages | list) %}}\n{{%- endif %}}\n{_CLOSE}{template}"
    )


def without_system(template: str) -> str:
    """The template that `with_system` was given."""
    return template.partition(_CLOSE)[2] if template.startswith(_OPEN) and _CLOSE in template else template
