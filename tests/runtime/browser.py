"""A real Chromium, spoken to through a pipe in its own protocol: no driver, no port."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 60.0
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One page: what it logs is kept, what it is asked is evaluated in it."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._left = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requested: list[str] = []

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def eventually(self, expression: str) -> Any:
        until = time.monotonic() + 20
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, f"{expression} did not come about: {self.text()}"
            time.sleep(0.05)
        return value

    def text(self) -> str:
        return self.evaluate("document.body.innerText")

    def type(self, label: str, value: str) -> None:
        """Fill in the field with that label, as typing does."""
        found = self.evaluate(
            f"(() => {{ const label = [...document.querySelectorAll('label')].find((one) => one.textContent === {json.dumps(label)});"
            f"if (!label) return false; label.control.focus(); label.control.select(); return true; }})()"
        )
        assert found, f"no field is labelled {label!r}: {self.text()}"
        self.call("Input.insertText", text=value)

    def click(self, text: str) -> None:
        """Click the button that says so, where it is."""
        at = self.evaluate(
            f"(() => {{ const one = [...document.querySelectorAll('button')].find((one) => one.textContent === {json.dumps(text)});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._event(answer)

    def _event(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif event.get("method") == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(str(params["args"]))
        elif event.get("method") == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {params['message']}")

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + _SECONDS
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._receive], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._receive, 1 << 16)
            assert chunk, "the browser has ended"
            self._left += chunk
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


def program() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        sentence = "no browser: Chromium is missing; `dev/dev build` installs it on Debian"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser that has never been anywhere."""
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    # The protocol's descriptors are 3 and 4, which a shell gives more simply than Python.
    command = [program(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    shell = f'exec "$@" 3<&{child_reads} 4>&{child_writes}'
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(child_reads, child_writes),
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(folder)},
        )
    os.close(child_reads)
    os.close(child_writes)
    try:
        yield Page(we_write, we_read)
    finally:
        os.close(we_write)
        os.close(we_read)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
