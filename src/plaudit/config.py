"""The strict base of every setting: frozen, no unknown key, no truth value for a number, no NaN."""

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


def _auto_or_count(value: Any) -> Any:
    # One refusal in place of one for each half of the union.
    if value == "auto" or (isinstance(value, int) and value >= 1):
        return value
    raise ValueError("a whole number is needed, 1 or more, or auto")


AutoOrCount = Annotated[Literal["auto"] | int, BeforeValidator(_auto_or_count)]
"""How much goes through the model in one pass: a number, or what there is memory for."""


class StrictConfig(BaseModel):
    """Frozen, refuses unknown keys, and shows a field's docstring as its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def given(self, *names: str) -> list[str]:
        """Those of the fields, of all where none is named, that are not at their default."""
        fields = type(self).model_fields
        return [name for name in names or fields if getattr(self, name) != fields[name].default]

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, and pydantic would take true for 1.
        kinds = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & set(get_args(kinds) or (kinds,)):
            raise ValueError("a number is needed, not a truth value")
        return value


Section = TypeVar("Section", bound=StrictConfig)


def of_stage(section: Section, otherwise: StrictConfig | None) -> Section:
    """A section that several stages read, as one of them reads it: with the keys that its own entry gives otherwise."""
    keys = otherwise.model_dump(exclude_none=True) if otherwise else {}
    return section.model_copy(update={**keys, "stages": {}})
