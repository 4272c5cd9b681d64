"""Bearer token on every route of the engine: vLLM's own key leaves /pause, /update_weights and /collective_rpc open."""

import hmac
from typing import Any

from searcher.servicekit.settings import SharedSettings

OPEN_PATHS = frozenset({"/health", "/metrics"})


class RequireToken:
    """ASGI middleware (`--middleware`); lets everything through where no token is configured."""

    def __init__(self, app: Any) -> None:
        self.app = app
        key = SharedSettings().api_key
        self.expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.expected is None or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self.expected):
            await self.app(scope, receive, send)
            return
        body = b'{"error": "Unauthorized", "detail": "send the token of SEARCHER_API_KEY_FILE as a bearer token"}'
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body})
