"""The strict base of every setting: frozen, no unknown key, no truth value for a number, no NaN."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class StrictConfig(BaseModel):
    """Frozen, refuses unknown keys, and shows a field's docstring as its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, and pydantic would take true for 1.
        kinds = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & set(get_args(kinds) or (kinds,)):
            raise ValueError("a number is needed, not a truth value")
        return value
