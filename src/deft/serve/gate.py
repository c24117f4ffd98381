"""The gate before the page: which requests reach Gradio, and what every answer forbids the browser.

In: each request, as ASGI gives it. Out: the same request without what a visitor may not decide, or a refusal. Gradio
serves much that this page does not have (uploads, files, a proxy, direct calls): only the routes the page uses are
open. A page of another site, or a name that was pointed at this machine (DNS rebinding), gets nothing.
"""

import asyncio
import ipaddress
import json
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::"})
ROUTES = re.compile(
    r"/|/(login|logout|config)/?|/(favicon\.ico|manifest\.json|robots\.txt|theme\.css)|/(assets|static)/[\w/.-]+"
    r"|/gradio_api/(info|app_id|user|token|login_check|reset|cancel|queue/join|queue/data|run/\w+|heartbeat/\w+)/?"
    r"|/gradio_api/theme\.css"
)
"""What the page in the browser and Gradio's client ask for; all else is closed."""
CALLS = re.compile(r"/gradio_api/(queue/join|run/\w+)/?")
FORWARDING = ("forwarded", "x-real-ip", "x-forwarded-", "x-gradio-")
"""Headers, by how they begin, in which a proxy says who asked for what; Gradio believes them."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'unsafe-inline'",  # Gradio writes its configuration into the page as a script
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self' blob:",
        "form-action 'self'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    )
)
ANSWER_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-dns-prefetch-control": "off",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

LOGIN_WINDOW_S = 300
WRONG_LOGINS_PER_ADDRESS = 10
WRONG_LOGINS_IN_ALL = 100
WRONG_LOGIN_DELAY_S = 1.0
SMALL_BODY_BYTES = 16_384
"""Enough for everything but a call: a login, a cancel."""
LISTENER_GRACE_S = 2.0
"""How long after asking for a reply a visitor may take to listen for it."""


class Refused(Exception):
    """A request that does not reach the page: the status, and a sentence for whoever sent it."""

    def __init__(self, status: HTTPStatus, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s


class Gate:
    """An ASGI application around the page's; one object, used by one event loop.

    `host` is what the server listens on, `names` the further host names that it is served under, `trusted_proxies`
    the addresses whose `X-Forwarded-*` headers count. `clean_call(path, JSON)` returns what may be passed on of a
    call, or raises `Refused`; `max_call_bytes` limits it. `on_gone(session)` is called when a visitor has left who
    was listening for a reply.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        names: Collection[str] = (),
        trusted_proxies: Collection[str] = (),
        clean_call: Callable[[str, Any], dict[str, Any]],
        max_call_bytes: int,
        on_gone: Callable[[str], None],
    ) -> None:
        self.app, self.host, self.port = app, host.strip("[]").lower(), port
        self.names = {name.lower() for name in names}
        self.trusted_proxies = set(trusted_proxies)
        self.clean_call, self.max_call_bytes, self.on_gone = clean_call, max_call_bytes, on_gone
        self.logins = Logins()
        self.listening: Counter[str] = Counter()
        self.joined: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = guarding(send)
        try:
            scope = self.believed(scope)
            self.check_origin(scope)
            check_route(scope)
            await self.pass_on(scope, receive, send)
        except Refused as refused:
            await answer(send, refused)

    # --- who asks ---------------------------------------------------------------------------------------------------

    def believed(self, scope: Scope) -> Scope:
        """Return the request with what a trusted proxy says of it, and without what anybody else claims."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        kept = [each for each in headers if not each[0].decode("latin-1").startswith(FORWARDING)]
        scope = {**scope, "headers": kept}
        if scope["client"] is not None and scope["client"][0] in self.trusted_proxies:
            said = {name: value.decode("latin-1") for name, value in headers}
            if host := said.get(b"x-forwarded-host", "").split(",")[0].strip():
                scope["headers"] = [*(each for each in kept if each[0] != b"host"), (b"host", host.encode("latin-1"))]
            if (scheme := said.get(b"x-forwarded-proto", "").split(",")[0].strip()) in {"http", "https"}:
                scope["scheme"] = scheme
            if address := said.get(b"x-forwarded-for", "").split(",")[-1].strip():
                scope["client"] = (address, 0)
        return scope

    def check_origin(self, scope: Scope) -> None:
        """Refuse a host name that is not served, and what a page of another site asks for."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        place = place_of(f"//{hosts[0]}") if len(hosts) == 1 else None
        if place is None or not self.is_served(place[0]):
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST, "not served under this host name; to allow it: --server_name NAME"
            )
        origin = header(scope, b"origin")
        if origin is not None and (asking := place_of(origin)) != place and not self.is_named(asking):
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another site may not use this one")
        if header(scope, b"sec-fetch-site") in {"cross-site", "same-site"} and not is_visit(scope):
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another site may not use this one")

    def is_served(self, name: str) -> bool:
        """Say whether the page may be asked for under a host name.

        An address cannot be pointed elsewhere as a name can: where the server listens on all addresses, each will do.
        """
        if name in LOCAL_NAMES or name == self.host or name in self.names:
            return True
        return self.host in WILDCARDS and is_address(name)

    def is_named(self, place: "tuple[str, int | None] | None") -> bool:
        """Say whether an origin is that of a name the page was said to have, on this port or a standard one."""
        return place is not None and place[0] in self.names and place[1] in {None, self.port}

    # --- what is asked ----------------------------------------------------------------------------------------------

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the page, its body read and checked."""
        path = scope["path"].rstrip("/")
        if scope["method"] != "POST":
            if path == "/gradio_api/queue/data":
                await self.listen(scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        is_call = CALLS.fullmatch(path) is not None
        body = await read_body(scope, receive, self.max_call_bytes if is_call else SMALL_BODY_BYTES)
        if is_call:
            call = self.clean_call(path, parsed(body))
            if path.endswith("/queue/join"):
                self.remember(str(call["session_hash"]))
            body = json.dumps(call).encode()
            kept = [each for each in scope["headers"] if each[0] not in {b"content-length", b"content-type"}]
            kept += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
            scope = {**scope, "headers": kept}
        if path == "/login":
            await self.log_in(scope, replayed(body, receive), send)
        else:
            await self.app(scope, replayed(body, receive), send)

    async def log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a login through, unless there were too many wrong ones; the answer to a wrong one waits."""
        address = scope["client"][0] if scope["client"] else ""
        self.logins.begin(address)

        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    self.logins.take_back(address)
                else:
                    await asyncio.sleep(WRONG_LOGIN_DELAY_S)
            await send(message)

        await self.app(scope, receive, send_later)

    # --- who listens ------------------------------------------------------------------------------------------------

    def remember(self, session: str) -> None:
        """Note when a session asked for a reply, for as long as it may take to listen."""
        now = time.monotonic()
        self.joined.pop(session, None)
        for other in [other for other, since in self.joined.items() if now - since > LISTENER_GRACE_S]:
            del self.joined[other]
        self.joined[session] = now

    async def listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a session listen for its replies, and notice when it leaves before they end."""
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        ended = False

        async def send_and_see(message: Message) -> None:
            nonlocal ended
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        self.listening[session] += 1
        try:
            await self.app(scope, receive, send_and_see)
        finally:
            self.listening[session] -= 1
            if not self.listening[session]:
                del self.listening[session]
                if not ended:
                    self.on_gone(session)

    def is_awaited(self, session: str) -> bool:
        """Say whether anybody listens for a session's reply; called from a worker's thread, it waits a moment."""
        while not self.listening.get(session):
            if time.monotonic() - self.joined.get(session, -math.inf) > LISTENER_GRACE_S:
                return False
            time.sleep(0.02)
        return True


class Logins:
    """The wrong logins of the last minutes: so many for an address, so many in all."""

    def __init__(self) -> None:
        self.tries: deque[tuple[float, str]] = deque()

    def begin(self, address: str) -> None:
        """Count a try before its answer is known, so that tries at once do not slip through.

        Raises:
            Refused: if there were too many.
        """
        now = time.monotonic()
        while self.tries and now - self.tries[0][0] > LOGIN_WINDOW_S:
            self.tries.popleft()
        here = [since for since, other in self.tries if other == address]
        if len(here) >= WRONG_LOGINS_PER_ADDRESS or len(self.tries) >= WRONG_LOGINS_IN_ALL:
            first = here[0] if len(here) >= WRONG_LOGINS_PER_ADDRESS else self.tries[0][0]
            wait_s = LOGIN_WINDOW_S - (now - first)
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong logins; try again later", retry_after_s=wait_s)
        self.tries.append((now, address))

    def take_back(self, address: str) -> None:
        """Forget an address's tries: the last was right."""
        self.tries = deque(each for each in self.tries if each[1] != address)


def check_route(scope: Scope) -> None:
    """Refuse what the page does not have: uploads, files, a proxy, other methods."""
    if scope["method"] not in {"GET", "HEAD", "POST"}:
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "not allowed")
    if not ROUTES.fullmatch(scope["path"]) or ".." in scope["path"]:
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")


def is_visit(scope: Scope) -> bool:
    """Say whether a person followed a link to the page, rather than another page asking in secret."""
    to_page = header(scope, b"sec-fetch-mode") == "navigate" and header(scope, b"sec-fetch-dest") == "document"
    return to_page and scope["method"] in {"GET", "HEAD"} and scope["path"] == "/"


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's first value."""
    return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)


def place_of(url: str) -> tuple[str, int | None] | None:
    """Return host name and port of an origin or of `//HOST`, the ports 80 and 443 as None; None if it is neither."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in {"", "http", "https"} or parts.hostname is None or parts.username is not None:
        return None
    if parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname, None if port in {80, 443} else port


def is_address(name: str) -> bool:
    """Say whether a host is given by its address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Read a request's body.

    Raises:
        Refused: if it is longer than allowed, or the visitor left.
    """
    too_long = Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {limit_bytes:,} bytes are taken")
    stated = header(scope, b"content-length") or "0"
    if not stated.isdecimal() or int(stated[:20]) > limit_bytes:
        raise too_long
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(HTTPStatus.BAD_REQUEST, "the request ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise too_long
        more = message.get("more_body", False)
    return b"".join(parts)


def parsed(body: bytes) -> Any:
    """Return a body's JSON.

    Raises:
        Refused: if it is none.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "a call is JSON") from error


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which has been read, then whatever follows."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def guarding(send: Send) -> Send:
    """Return a `send` that adds what every answer forbids the browser."""
    added = [(name.encode(), value.encode()) for name, value in ANSWER_HEADERS.items()]

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                each for each in message.get("headers", []) if each[0].decode("latin-1").lower() not in ANSWER_HEADERS
            ]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return send_guarded


async def answer(send: Send, refused: Refused) -> None:
    """Send a refusal, as the JSON in which Gradio's page expects one."""
    body = json.dumps({"detail": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]  # what is left of the request is not read
    if refused.retry_after_s is not None:
        headers.append((b"retry-after", str(max(round(refused.retry_after_s), 1)).encode()))
    await send({"type": "http.response.start", "status": int(refused.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
