"""GET /: a small page to try a model by hand, one file without a build step or anybody else's servers.

Whatever the server tells is put into the page as text, and the policy that is sent with it allows no script and no
style but the file's own, by their hashes: a model, a label or an answer that looks like HTML stays what it is.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_FILE = Path(__file__).with_suffix(".html")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def add_page(app: FastAPI) -> None:
    """Serve the page at the root."""

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """Show the page."""
        text, sent = _page()
        return HTMLResponse(text, headers=sent)


@cache
def _page() -> tuple[str, dict[str, str]]:
    text = _FILE.read_text(encoding="utf-8")
    hashes = {kind: hashed(content) for kind, content in _INLINE.findall(text)}
    return text, headers(hashes["script"], hashes["style"], "data:")  # the empty icon


def headers(scripts: str, styles: str, images: str) -> dict[str, str]:
    """Keep a page to itself: it loads what is named here, and asks nobody but this server."""
    policy = (
        "default-src 'none'",
        f"script-src {scripts}",
        f"style-src {styles}",
        "connect-src 'self'",
        f"img-src {images}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def hashed(content: str) -> str:
    """Name an inline script or style in a policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
