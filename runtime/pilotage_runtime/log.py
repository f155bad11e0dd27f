"""JSON logs, one object a line on standard output; access lines are gathered and written together."""

import logging
import os
import re
import select
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

# So much a pipe takes without waiting, once it takes anything, and without another worker's line in between.
_ONE_WRITE = select.PIPE_BUF
# For a reader that is only slow, once; after it has let this pass, nobody waits for it until it reads again.
_PATIENCE_MILLISECONDS = 100
# Of a path and an error; escaped as badly as can be, a line still fits in one write.
_LONGEST = 256
_FLUSH_LINES = 200
FLUSH_SECONDS = 0.2
# Access lines are formatted by hand: a logging call costs more than a small model's inference.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what was passed as `extra` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z).decode()


class LineHandler(logging.Handler):
    """One line a record, in as many writes as it needs, which are lost where nobody reads them.

    A write into a full pipe would stop whoever logs: an event loop in the middle of its requests, or the supervisor,
    which then neither replaces nor stops a worker.
    """

    def __init__(self, descriptor: int = 1) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._patience = _PATIENCE_MILLISECONDS
        self._lost = 0
        self._torn = False  # a line has begun and was lost in its middle

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, after how many before it were lost."""
        try:
            line = self.format(record).encode() + b"\n"
        except Exception:  # noqa: BLE001 - as every handler of logging's
            self.handleError(record)
            return
        try:
            told = _told_lost("log", self._lost) if self._lost else b""
            if self._write(told + line):
                self._lost = 0
            else:
                self._lost += 1
        except OSError:
            # Nobody will read it any more; serving goes on.
            return

    def _write(self, data: bytes) -> bool:
        if self._torn:
            data = b"\n" + data
        begin = 0
        while begin < len(data):
            if not self._writable.poll(self._patience):
                self._patience = 0
                self._torn = self._torn or begin > 0
                return False
            begin += os.write(self._descriptor, data[begin : begin + _ONE_WRITE])
        self._patience = _PATIENCE_MILLISECONDS
        self._torn = False
        return True


def _told_lost(log: str, lines: int) -> bytes:
    line = {"time": datetime.now(UTC), "level": "warning", "logger": log.split(maxsplit=1)[0],
            "message": f"lines of the {log} were lost: nobody read it", "lines": lines}  # fmt: skip
    return orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def configure() -> None:
    """Send every logger through one JSON handler on standard output."""
    handler = LineHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    # uvicorn says in several lines what the access log and the life cycle already say.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # httpx tells every request with its whole URL, in which secrets may stand.
    logging.getLogger("httpx").setLevel(logging.WARNING)


# When it was answered, request id, method, path, status, seconds, error, how many lines this one stands for, and
# the W3C trace context that came with it.
_Answered = tuple[float, str, str, str, int, float, str | None, int, bytes | None]
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# In place of a sentence that names what came, which nobody may see.
_UNQUOTED = "refused; why was told to the caller alone"
# Beyond the lines that are always written in a second, one stands for so many.
SAMPLED = 50


class AccessLog:
    """One line a request, buffered for at most FLUSH_SECONDS (the server flushes on that beat).

    Under load, lines are sampled: in each second the first `lines_per_second` are written, of the rest one in
    SAMPLED, which says so. Successes and failures are counted apart, so that neither hides the other. Where nobody
    reads the log, lines are lost, and their number is told later: no request waits for a log. Without
    `quotes_refusals` it says of a refused request (400) no more than that.
    """

    def __init__(
        self, descriptor: int = 1, lines_per_second: int = 1000, *, quotes_refusals: bool = True
    ) -> None:
        self._quotes_refusals = quotes_refusals
        self._descriptor = descriptor
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._lost = 0
        self._lines_per_second = lines_per_second
        self._answered: list[_Answered] = []
        self._second = 0
        self._stamp = ""
        self._counted_second = 0
        self._counts = [0, 0]  # successes and failures of that second

    def write(
        self,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        *,
        error: str | None = None,
        traceparent: bytes | None = None,
    ) -> None:
        """Note one answered request; `request_id` and `method` need no escaping, a path and an error do."""
        now = time.time()
        if int(now) != self._counted_second:
            self._counted_second = int(now)
            self._counts = [0, 0]
        if status == 400 and not self._quotes_refusals:
            error = _UNQUOTED
        failed = status >= 400
        count = self._counts[failed] = self._counts[failed] + 1
        beyond = count - self._lines_per_second
        if beyond > 0 and beyond % SAMPLED:
            return
        stands_for = SAMPLED if beyond > 0 else 1
        self._answered.append(
            (now, request_id, method, path, status, seconds, error, stands_for, traceparent)
        )
        if len(self._answered) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered, as many whole lines at once as fit."""
        if not self._answered:
            return
        # Formatted here, many in a row, a line costs a fraction of what it costs between the steps of a request.
        answered, self._answered = self._answered, []
        data = "".join(map(self._line, answered)).encode()
        if self._lost and self._writable.poll(0):
            data = _told_lost("access log", self._lost) + data
            self._lost = 0
        begin = 0
        try:
            while begin < len(data) and self._writable.poll(0):
                end = data.rindex(b"\n", begin, begin + _ONE_WRITE) + 1
                os.write(self._descriptor, data[begin:end])
                begin = end
        except OSError:
            # Nobody will read it any more; serving goes on.
            return
        self._lost += data.count(b"\n", begin)

    def _line(self, answered: _Answered) -> str:
        at, request_id, method, path, status, seconds, error, stands_for, traceparent = answered
        second = int(at)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        reason = "" if error is None else f',"error":{_quoted(error)}'
        if traceparent is not None and (match := _TRACEPARENT.match(traceparent)):
            reason += f',"trace_id":"{match[1].decode()}"'
        if stands_for > 1:
            reason += f',"sampled":{stands_for}'
        return (
            f'{{"time":"{self._stamp}.{int((at - second) * 1e6):06d}Z","level":"info","logger":"access",'
            f'"request_id":"{request_id}","method":"{method}","path":{_quoted(path)},"status":{status},'
            f'"milliseconds":{seconds * 1000:.3f}{reason}}}\n'
        )


def _quoted(text: str) -> str:
    cut = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return orjson.dumps(cut.encode("utf-8", "replace").decode()).decode()
