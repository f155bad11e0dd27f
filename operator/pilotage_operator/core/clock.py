"""Times as status holds them: RFC 3339 in UTC, to the millisecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse(text: str) -> datetime:
    return datetime.fromisoformat(text)


def seconds_between(earlier: str | None, later: datetime) -> float:
    """Seconds from a stamp to `later`; 0 for an absent stamp, never negative (clocks differ)."""
    return 0.0 if earlier is None else max(0.0, (later - parse(earlier)).total_seconds())


def later(text: str, seconds: float) -> str:
    """The stamp that many seconds after another."""
    return stamp(parse(text) + timedelta(seconds=seconds))
