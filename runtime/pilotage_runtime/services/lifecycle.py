"""Where a server stands between its first and its last request."""

from dataclasses import dataclass


@dataclass(slots=True)
class Lifecycle:
    """Ready from the start (the port opens only after the warm-up) until SIGTERM."""

    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether new traffic should come here."""
        return not self.draining
