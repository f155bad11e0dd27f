"""Errors while serving: whose fault it is decides the code."""

_LONGEST = 300


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not a defect
    """The caller's request cannot be served: a 4xx that says what came and what is expected."""

    def __init__(self, message: str, status: int = 400, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.headers = headers


class OutOfRange(Refused):
    """A value is outside its feature's range."""

    def __init__(self, feature: str, message: str) -> None:
        super().__init__(message)
        self.feature = feature


class ModelFailedError(Exception):
    """The model raised, or answered what it must not: always a 5xx."""

    @classmethod
    def raised(cls, model: str, error: BaseException) -> "ModelFailedError":
        """Say in one line, of bounded length, what a model raised."""
        # A path that Python could not decode holds halves of characters, which no answer can carry.
        text = " ".join(str(error).encode("utf-8", "replace").decode().split()) or type(error).__name__
        return cls(f"model '{model}' failed: {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'}")


class TooLateError(Exception):
    """The caller's time was up before the model answered."""


class BusyError(Exception):
    """The queue of a model is full: waiting longer would only make every answer late."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"busy: {waiting} requests wait already")
