"""The one exception that reaches a person: a sentence that says what is wrong and how to mend it."""

from __future__ import annotations


class StackError(Exception):
    """Something that the person at the keyboard can understand and mend."""
