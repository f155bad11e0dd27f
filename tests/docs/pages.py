"""The documentation as text: its pages, their fenced blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "charts/pilotage/README.md", ROOT / "bench/README.md"]
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]+`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    return (body for kind, body in _FENCE.findall(page.read_text()) if kind == language)


def prose(page: Path) -> str:
    """The page without its fenced blocks, in which a # is no heading."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    return _LINK.findall(_CODE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them."""
    headings = (heading.lower() for heading in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def first_column(page: Path) -> list[str]:
    """What stands in backticks in the first cell of the rows of all tables."""
    rows = re.findall(r"^\| (`.*?) \|", prose(page), re.MULTILINE)
    return [word for cell in rows for word in re.findall(r"`([^`]+)`", cell)]
