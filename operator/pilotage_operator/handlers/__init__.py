"""Where events come in: parse, call, record."""
