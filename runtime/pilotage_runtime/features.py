"""What is known of one feature: a column of the input, or an input of its own."""

from dataclasses import dataclass
from typing import Any

Category = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Feature:
    """One measure that a model takes."""

    name: str
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[Category, ...] = ()
    unit: str | None = None
    description: str | None = None

    @property
    def bounded(self) -> bool:
        """Whether some values are refused."""
        return self.minimum is not None or self.maximum is not None or bool(self.categories)

    def range(self) -> str:
        """The values that are allowed, in words."""
        if self.categories:
            few = ", ".join(repr(category) for category in self.categories[:8])
            return f"one of {few}{', …' if len(self.categories) > 8 else ''}"
        if self.minimum is None:
            return f"at most {self.maximum:.7g}" if self.maximum is not None else "any value"
        return (
            f"at least {self.minimum:.7g}"
            if self.maximum is None
            else f"{self.minimum:.7g} to {self.maximum:.7g}"
        )

    def metadata(self) -> dict[str, Any]:
        """The feature as model metadata shows it: what is not stated is not there."""
        stated = {
            "name": self.name,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "categories": list(self.categories) or None,
            "unit": self.unit,
            "description": self.description,
        }
        return {key: value for key, value in stated.items() if value is not None}
