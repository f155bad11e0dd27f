"""Which parts of a broken-off download are whole, so that the next try goes on behind them.

A line is written after the bytes that it tells of. Both lie in the page cache then, which outlives the
process, however it ends, but not the machine's own end: so a journal of another boot counts for nothing.
"""

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class _File:
    version: str
    size: int
    done: set[int] = field(default_factory=set[int])


class Journal:
    """The parts of each file that have arrived, by the store's own word for the content's version."""

    def __init__(self, path: Path, uri: str, part_bytes: int) -> None:
        self._path = path
        self._part_bytes = part_bytes
        self._head = {"uri": uri, "part_bytes": part_bytes, "boot": _boot()}
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()
        if not self._read():
            self.clear()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to go on behind."""
        return not any(file.done for file in self._files.values())

    def resume(self, name: str, version: str, size: int) -> set[int]:
        """Say where the parts begin that are there already; none where the store's content is another by now."""
        known = self._files.get(name)
        if known is None or (known.version, known.size) != (version, size):
            self._files[name] = _File(version, size)
            self._write({"file": name, "version": version, "size": size})
        return set(self._files[name].done)

    def note(self, name: str, start: int) -> None:
        """Take note of a part whose bytes are written."""
        self._files[name].done.add(start)
        self._write({"part": name, "start": start})

    def forget(self, name: str) -> None:
        """Give up what has arrived of a file: it has changed, or is damaged."""
        if self._files.pop(name, None) is not None:
            self._write({"forget": name})

    def clear(self) -> None:
        """Begin anew."""
        self._files = {}
        self._path.write_bytes(orjson.dumps(self._head) + b"\n")

    def keep(self, names: set[str]) -> None:
        """Give up the files that the store no longer lists."""
        for name in self._files.keys() - names:
            self.forget(name)

    def trim(self, folder: Path) -> None:
        """Make both agree: forget the files that are gone or cut, then remove those that no part is known of.

        A run that ended late, or was killed, had moved its files on.
        """
        for name, file in list(self._files.items()):
            if not self._is_held(folder / name, file):
                self.forget(name)
        known = {folder / name for name in self._files}
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path not in known:
                path.unlink()

    def _is_held(self, path: Path, file: _File) -> bool:
        end = max((min(start + self._part_bytes, file.size) for start in file.done), default=0)
        return path.is_file() and path.stat().st_size >= end

    def _read(self) -> bool:
        """Replay the lines; the last one may be half written."""
        try:
            lines = self._path.read_bytes().split(b"\n")[:-1]
            if not lines or not self._head["boot"] or orjson.loads(lines[0]) != self._head:
                return False
            for line in lines[1:]:
                self._replay(orjson.loads(line))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def _replay(self, line: dict[str, Any]) -> None:
        if "part" in line:
            self._files[line["part"]].done.add(line["start"])
        elif "forget" in line:
            self._files.pop(line["forget"], None)
        else:
            self._files[line["file"]] = _File(line["version"], line["size"])

    def _write(self, line: dict[str, Any]) -> None:
        with self._lock, self._path.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
