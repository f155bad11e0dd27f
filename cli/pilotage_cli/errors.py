"""The one exception that reaches a person: a sentence that says what is wrong and how to mend it."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """Something that the person at the keyboard can understand and mend."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
