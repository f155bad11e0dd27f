"""One inference on its connection: it gathers the body, is handed on when whole, and is answered once."""

from typing import TYPE_CHECKING

from pilotage_runtime.batching import Entry
from pilotage_runtime.engine import Engine
from pilotage_runtime.services.asgi import Header
from pilotage_runtime.services.exchange import Answer, Exchange
from pilotage_runtime.telemetry import Slot

if TYPE_CHECKING:
    from pilotage_runtime.services.connection import Connection
    from pilotage_runtime.services.infer import InferHandler


class Call(Exchange):
    """An inference request, in the steps that its connection takes it through.

    head complete → `opened`; its turn has come (the requests before it are answered) and its body is whole →
    `begin`; then `answer` from wherever the answer is known, or `gone` if the caller left first.
    """

    __slots__ = (
        "arriving", "begun", "body", "complete", "connection", "early", "engine", "entry", "expects_continue",
        "handler", "keep_alive", "response_complete", "size", "slot", "turn",
    )  # fmt: skip

    def __init__(
        self,
        connection: "Connection",
        handler: "InferHandler",
        path: str,
        headers: list[Header],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        super().__init__("POST", path, headers)
        self.connection = connection
        self.handler = handler
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.turn = False
        self.arriving = False  # what came of its body is held, and more is to come
        self.complete = False
        self.begun = False
        self.response_complete = False  # uvicorn asks its own cycles by this name
        self.early: Answer | None = None  # known before its turn
        self.body: list[bytes] = []
        self.size = 0
        self.engine: Engine | None = None
        self.entry: Entry | None = None
        self.slot: Slot
        handler.opened(self)

    def take_turn(self) -> None:
        """The requests before this one are answered: it may be."""
        self.turn = True
        self.connection.serving = self
        if self.early is not None:
            self.answer(self.early)
            return
        if self.expects_continue and not self.complete:
            self.connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.step()

    def add(self, chunk: bytes) -> None:
        """Gather a part of the body, unless it is refused already."""
        if self.response_complete or self.early is not None:
            return
        self.body.append(chunk)
        self.size += len(chunk)
        self.handler.grown(self, len(chunk))

    def whole(self) -> None:
        """The body has ended."""
        self.complete = True
        if self.arriving:
            self.handler.held.arrived(self)
        self.step()

    def step(self) -> None:
        """Hand the request on as soon as it may be."""
        if self.turn and self.complete and not self.begun and not self.response_complete:
            self.begun = True
            self.handler.begin(self)

    def answer(self, answer: Answer) -> None:
        """Send the answer, once, when the requests before it have theirs."""
        if not self.turn:
            self.early = answer
            self.handler.held.release(self)
            self.body = []
            return
        self.response_complete = True
        self.handler.ended(self, answer)
        self.connection.send(self, answer)
        self.body = []

    def gone(self) -> None:
        """The caller left before the answer."""
        self.response_complete = True
        if self.entry is not None and self.engine is not None:
            self.engine.leave(self.entry)
        self.handler.abandoned(self)
        self.body = []
