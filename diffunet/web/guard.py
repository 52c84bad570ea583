"""Who may speak to the server: what each request is asked for before any of it is done.

A page on this machine is in reach of every program and every user of it, and of every site that is open in the
browser. So a request is answered only if it

- names a host that is ours, since a strange name may have been pointed here (DNS rebinding);
- has the token, as `?token=` once and then as a cookie, or as `Authorization: Bearer`;
- does not come from another site, as far as the browser says where it comes from;
- carries a header that a form of another site cannot send, if it changes anything.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_TO_ALL = ("/health",)
"""What is answered without a token: it says nothing."""

HEADER = "X-Diffunet"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What a browser lets the page do."""

ENTER = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>diffunet</title>'
    '<link rel="icon" href="/static/icon.svg"><meta http-equiv="refresh" content="0;url=/">'
    '<p><a href="/">diffunet</a></p></html>'
)
"""The answer to the address with the token. It leads on to the page from within our own site: after a redirect that
another site has begun, a browser would hold back a cookie that is SameSite=Strict."""

STRANGER = (
    "Open this page by the address that diffunet has printed, which ends in ?token=... It lets in the person who "
    "started the server, and nobody else."
)


class Guard:
    """Answers strangers itself, and passes on all else; every answer gets headers that bind the browser.

    Args:
        app: the application behind it.
        token: what lets people in; None lets everybody in who can reach the server.
        port: in the cookie's name, since cookies of all ports of a host are one.
        host: the address that the server listens on.
        frame: the origin of a page that may show this one in a frame, such as http://localhost:8888.
    """

    def __init__(self, app: ASGIApp, token: str | None, port: int, host: str, frame: str | None = None) -> None:
        self.app, self.token, self.cookie = app, token, f"diffunet-{port}"
        self.names = {"localhost", socket.gethostname().lower(), host.lower()}
        self.any_address = not is_loopback(host)
        self.ancestors = " ".join(filter(None, ("frame-ancestors 'self'", frame)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                policy = headers.get("Content-Security-Policy", POLICY)  # a report has its own
                headers["Content-Security-Policy"] = f"{policy}; {self.ancestors}"
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self.refusal(scope)
        await (self.app if answer is None else answer)(scope, receive, bound)

    def refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on, None for one that is."""
        asked, path, method = HTTPConnection(scope), scope["path"], scope["method"]
        headers = asked.headers
        if not self._is_ours(headers.get("host", "")):
            return PlainTextResponse("This server does not go by that name.", 421)
        if path in OPEN_TO_ALL:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        entering = path == "/" and method == "GET"
        if entering and self.token is not None and given and _same(given[0], self.token):
            answer = HTMLResponse(ENTER)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_known(asked):
            return PlainTextResponse(STRANGER, 401) if entering else JSONResponse({"error": STRANGER}, 401)
        if not entering and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return JSONResponse({"error": "other sites get no answer"}, 403)
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != headers["host"]:
                return JSONResponse({"error": "other sites get no answer"}, 403)
            if HEADER not in headers:
                return JSONResponse({"error": f"the header {HEADER} is missing, which the page sends"}, 403)
        return None

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host header names this machine. The port is not compared: tunnels have another."""
        name = (urlsplit(f"//{host}").hostname or "") if _is_host(host) else ""
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self.any_address  # a number cannot be pointed elsewhere

    def _is_known(self, asked: HTTPConnection) -> bool:
        """Return whether a request has the token."""
        if self.token is None:
            return True
        kind, _, bearer = asked.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(bearer, self.token):
            return True
        # SimpleCookie would drop all that follows what it cannot read, such as cookies of another port.
        return _same(asked.cookies.get(self.cookie, ""), self.token)


def _is_host(text: str) -> bool:
    """Return whether a text can be a Host header: urlsplit raises for some others."""
    try:
        return bool(urlsplit(f"//{text}").hostname) and not set(text) & set("@/?#\\ \t")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _same(given: str, token: str) -> bool:
    """Compare in a time that does not depend on how much is the same."""
    return hmac.compare_digest(given.encode(), token.encode())
