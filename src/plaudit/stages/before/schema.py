"""The recipe as a JSON Schema, for editors: keys complete themselves, and each shows its help.

A recipe names it in its first line, `# yaml-language-server: $schema=plaudit.schema.json`, as an address or as a path
beside the recipe.
"""

from typing import Any

from plaudit.stages.recipe import Recipe

SCHEMA = "plaudit.schema.json"
"""Its usual name."""


def schema_line(place: str = SCHEMA) -> str:
    """The line of a recipe that tells editors where its schema is."""
    return f"# yaml-language-server: $schema={place}"


def recipe_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
