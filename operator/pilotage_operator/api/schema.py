"""The constructs that a field of the API may use, each with its meaning on both sides.

A field is declared once. pydantic reads the declaration when it checks an object, and `crd.py` reads the
same declaration when it renders the CRD, so a construct that one side does not know cannot slip in.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError, core_schema

# What to_camel would spell otherwise than Kubernetes does.
_SPELLINGS = {
    "target_cpu_utilization_percent": "targetCPUUtilizationPercent",
    "consecutive_5xx_errors": "consecutive5xxErrors",
    "from_": "from",
}


def api_name(attribute: str) -> str:
    """Spell a Python attribute as it stands in YAML."""
    return _SPELLINGS.get(attribute) or to_camel(attribute)


class ApiModel(BaseModel):
    """A section of the object: frozen, strict, and closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        alias_generator=api_name,
        validate_by_alias=True,
        validate_by_name=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, value: Any) -> Any:
        """Do as the API server does, which drops a known field's null before it fills defaults and checks."""
        if not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        known = {api_name(name) for name in cls.model_fields}
        return {name: given for name, given in fields.items() if given is not None or name not in known}

    def to_dict(self) -> dict[str, Any]:
        """Spell the section as it stands in YAML: API names, nothing that is absent."""
        return self.model_dump(by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class _Check(ABC):
    """A construct with a check of its own after pydantic's."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    @abstractmethod
    def check(self, value: Any) -> Any:
        """Return the value, or raise with a sentence that says what is allowed."""


@dataclass(frozen=True)
class Matches(_Check):
    r"""The whole text matches `pattern`; `message` says so in words.

    The pattern is without anchors, and spells its classes out: what `\s` or `\d` means differs between
    Python's expressions and the API server's.
    """

    pattern: str
    message: str

    @property
    def cel(self) -> str:
        """Say the same for the API server."""
        return f"self.matches(r'^({self.pattern})$')"

    def check(self, value: Any) -> Any:
        if re.fullmatch(self.pattern, value) is None:
            raise PydanticCustomError("matches", "{message}", {"message": self.message})
        return value


@dataclass(frozen=True)
class ListSet(_Check):
    """A list whose items differ, merged item by item under server-side apply."""

    def check(self, value: Any) -> Any:
        items = cast("list[Any]", value)
        for index, item in enumerate(items):
            if item in items[:index]:
                raise PydanticCustomError("duplicate", "Duplicate value: {item}", {"item": repr(item)})
        return items


@dataclass(frozen=True)
class ListMap(_Check):
    """A list whose items are told apart by one field, merged by it under server-side apply."""

    key: str

    def check(self, value: Any) -> Any:
        seen: set[Any] = set()
        for item in cast("list[BaseModel]", value):
            name = getattr(item, self.key)
            if name in seen:
                raise PydanticCustomError(
                    "duplicate", "Duplicate value: {key}: {name}", {"key": self.key, "name": name}
                )
            seen.add(name)
        return value


@dataclass(frozen=True)
class Keys(Matches):
    """Every key of a map matches the pattern; a key with null is no key."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        checked = super().__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(_without_nulls, checked)

    @property
    def cel(self) -> str:
        return f"self.all(key, key.matches(r'^({self.pattern})$'))"

    def check(self, value: Any) -> Any:
        for key in cast("dict[str, Any]", value):
            super().check(key)
        return value


def _without_nulls(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    return {name: item for name, item in given.items() if item is not None}


@dataclass(frozen=True)
class DateTime:
    """An RFC 3339 time. Only the operator writes times, so pydantic takes them as they are."""


_QUANTITY = Matches(
    r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?",
    "must be a quantity of 0 or more, such as 250m, 2, 512Mi or 4Gi",
)


@dataclass(frozen=True)
class QuantityFormat(_Check):
    """Kubernetes' quantity, as a whole number or a text."""

    longest: int = 27
    """What the pattern allows at most."""

    @property
    def cel(self) -> str:
        return f"string(self).matches(r'^({_QUANTITY.pattern})$')"

    @property
    def message(self) -> str:
        return _QUANTITY.message

    def check(self, value: Any) -> Any:
        _QUANTITY.check(str(value))
        return value


def whole(value: Any) -> Any:
    """Turn 3.0 into 3; leave all else to the check that follows."""
    # kubectl sends the 3.0 of a YAML file as 3.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(whole)]
Timestamp = Annotated[str, DateTime()]
Quantity = Annotated[int | str, BeforeValidator(whole), QuantityFormat()]
