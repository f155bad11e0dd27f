"""A program's settings as flags: each flag sets the environment variable that the setting is read from.

So every setting has a flag, a process that is started on the way (a worker) reads the same, and what the
environment already says counts where no flag is given.
"""

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from pilotage_cli.errors import EXIT_USAGE, CommandError

_SHOWN = (("Path", "PATH"), ("Literal", "FORMAT"), ("int|float", "N"))

Settings = TypeVar("Settings", bound=BaseSettings)


class Flag(NamedTuple):
    """A flag and the setting behind it."""

    kind: type[BaseSettings]
    option: str
    variable: str
    field: FieldInfo


class Flags:
    """The flags of some settings; `names` renames, `defaults` are this command's own, `without` are not offered."""

    def __init__(
        self,
        *settings: type[BaseSettings],
        names: Mapping[str, str],
        defaults: Mapping[str, str],
        without: frozenset[str],
    ) -> None:
        self._defaults = defaults
        self._flags = dict[str, Flag]()
        for kind in settings:
            for setting, field in kind.model_fields.items():
                if setting not in without and setting not in self._flags:
                    option = f"--{names.get(setting, setting.replace('_', '-'))}"
                    self._flags[setting] = Flag(kind, option, variable(kind, setting), field)

    def add_to(self, parser: argparse.ArgumentParser, titles: Mapping[type[BaseSettings], str]) -> None:
        """Offer them all, those of each kind of settings in a group of their own."""
        groups = {kind: parser.add_argument_group(title) for kind, title in titles.items()}
        for setting, flag in self._flags.items():
            group = groups[flag.kind]
            default = self._defaults.get(setting, flag.field.default)
            shown = "" if flag.field.is_required() or default in (None, "", []) else f"; default {default}"
            explained = f"{flag.field.description}{shown} [{flag.variable}]".replace("%", "%%")
            destination = _destination(setting)
            if flag.field.annotation is bool:
                group.add_argument(
                    flag.option, dest=destination, action=argparse.BooleanOptionalAction, help=explained
                )
            else:
                group.add_argument(
                    flag.option, dest=destination, metavar=_metavar(flag.field), help=explained
                )

    def to_environment(self, options: argparse.Namespace) -> None:
        """Set what was given, and this command's defaults where neither flag nor environment says otherwise."""
        for setting, flag in self._flags.items():
            given = getattr(options, _destination(setting))
            if given is not None:
                os.environ[flag.variable] = str(given)
            elif setting in self._defaults and not os.environ.get(flag.variable):
                os.environ[flag.variable] = self._defaults[setting]

    def read(self, kind: type[Settings]) -> Settings:
        """Read settings from the environment; name the flag where one does not fit."""
        try:
            return kind()
        except ValidationError as error:
            problems = [self._problem(problem) for problem in error.errors()]
            raise CommandError("; ".join(problems), EXIT_USAGE) from None

    def _problem(self, problem: Any) -> str:
        setting = str(problem["loc"][0]) if problem["loc"] else ""
        flag = self._flags.get(setting)
        name = f"{flag.option} ({flag.variable})" if flag else setting
        return f"{name}: {problem['msg']}, got {problem['input']!r}"


def variable(kind: type[BaseSettings], setting: str) -> str:
    """Name the environment variable that a setting is read from."""
    return f"{kind.model_config.get('env_prefix') or ''}{setting}".upper()


def _destination(setting: str) -> str:
    return f"setting_{setting}"


def _metavar(field: FieldInfo) -> str:
    text = str(field.annotation)
    for kind, shown in _SHOWN:
        if re.search(rf"\b{kind}\b", text):
            return shown
    return "TEXT"
