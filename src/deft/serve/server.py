"""Serving the page: an address to listen on, the gate before Gradio's routes, and the public link."""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI

from deft.errors import UserError
from deft.serve.calls import clean_call, max_call_bytes
from deft.serve.gate import WILDCARDS, Gate, is_address

START_TIMEOUT_S = 60
MAX_WAITING = 20
"""Replies that may be waiting, over all visitors; who asks for another is told that the queue is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where the page is served, and to whom.

    `server_names` are further host names that visitors may use, behind a proxy for example; `trusted_proxies` the
    addresses of proxies whose `X-Forwarded-*` headers count. `share` asks Gradio for a public link, through Gradio's
    servers.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    password: str | None = None
    server_names: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()

    @property
    def needs_password(self) -> bool:
        """Say whether others than this computer's user can reach the page."""
        return self.share or not is_loopback(self.host) or bool(self.server_names or self.trusted_proxies)

    def check(self) -> None:
        """Check that a page which others can reach has a password; it can be asked before a model is loaded.

        Raises:
            UserError: if it has none, or a proxy is not given by its address.
        """
        for proxy in self.trusted_proxies:
            if not is_address(proxy):
                raise UserError("a trusted proxy is given by its address", got=proxy, fix="such as 127.0.0.1 or ::1")
        if self.password is not None and not self.password:
            raise UserError("the password is empty", fix="give one, or leave the option out")
        if self.needs_password and self.password is None:
            raise UserError(
                "others could reach this page, so it needs a password",
                got="share" if self.share else f"host {self.host}" if not is_loopback(self.host) else "behind a proxy",
                fix="set DEFT_PASSWORD, or --password_file (not --password, which others can read), "
                "or serve it to this computer alone",
            )


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServedPage:
    """A page that is served in the background until `close`, at `local_url` and, if it is shared, at `share_url`."""

    def __init__(self, page: gr.Blocks, app: FastAPI, gate: Gate, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self.page, self.app, self.gate = page, app, gate
        shown = "localhost" if host in WILDCARDS else f"[{host}]" if ":" in host else host
        self.local_url, self.share_url = f"http://{shown}:{port}/", ""
        config = uvicorn.Config(
            gate,
            log_level="warning",
            proxy_headers=False,  # the gate decides whom to believe
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self.thread.start()
        end = time.monotonic() + START_TIMEOUT_S
        while not self.server.started:
            if not self.thread.is_alive() or time.monotonic() > end:
                raise UserError("the page's server did not start", fix="run the command again")
            time.sleep(0.01)

    def share(self, share_token: str) -> None:
        """Ask Gradio for a public link to this server.

        Raises:
            UserError: if there is none.
        """
        from gradio.networking import setup_tunnel

        place = urlsplit(self.local_url)
        try:
            link = setup_tunnel(
                local_host="127.0.0.1" if place.hostname == "localhost" else str(place.hostname),
                local_port=int(place.port or 80),
                share_token=share_token,
                share_server_address=None,
                share_server_tls_certificate=None,
            )
        except Exception as error:  # Gradio's own errors, and those of the network and the system
            what, fix = "Gradio gave no public link", "check the network, or leave --share out"
            raise UserError(what, got=f"{type(error).__name__}: {error}", fix=fix) from error
        name = str(urlsplit(link).hostname)
        self.gate.names.add(name)
        self.share_url = f"https://{name}"

    def wait(self) -> None:
        """Wait until interrupted, then stop serving."""
        try:
            while self.thread.is_alive():
                self.thread.join(1)
        except KeyboardInterrupt:
            print("closing the page", flush=True)
        finally:
            self.close()

    def close(self) -> None:
        """Stop serving, and end the public link."""
        if self.share_url:
            from gradio.tunneling import CURRENT_TUNNELS

            for tunnel in CURRENT_TUNNELS:
                tunnel.kill()
        self.page.close(verbose=False)
        self.server.should_exit = True
        if self.thread.is_alive():
            self.thread.join(5)


def serve(
    page: gr.Blocks,
    address: Address,
    *,
    check_login: Callable[[str, str], bool] | None,
    on_gone: Callable[[str], None],
    **looks: Any,
) -> ServedPage:
    """Start serving a page in the background.

    `check_login(user name, password)` says who may in, everybody if None; `on_gone(session)` is called when a visitor
    has left before a reply's end; `looks` go to Gradio (theme, style sheet, text of the login).

    Raises:
        UserError: if others could reach the page without a password, the port is taken, or there is no public link.
    """
    address.check()
    listener = listen(address.host, address.port)
    page.queue(max_size=MAX_WAITING, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        auth=check_login,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        **looks,
    )
    gate = Gate(
        app,
        host=address.host,
        port=listener.getsockname()[1],
        names=address.server_names,
        trusted_proxies=address.trusted_proxies,
        clean_call=partial(clean_call, page),
        max_call_bytes=max_call_bytes(page),
        on_gone=on_gone,
    )
    served = ServedPage(page, app, gate, listener)
    try:
        served.start()
        if address.share:
            served.share(page.share_token)
    except UserError:
        served.close()
        raise
    return served


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host and port.

    Raises:
        UserError: if the port is taken or the host is not this computer's.
    """
    host = host.strip("[]")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot serve on {host}:{port}", got=str(error), fix="choose another --port") from error
