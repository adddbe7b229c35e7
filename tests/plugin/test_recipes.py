"""Servers that know nothing of us take a lease: http.server, any program, uvicorn, gunicorn.

A client connects before the server has started: its connection waits in the lease's backlog.
"""

from __future__ import annotations

import http.client
import http.server
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sharedsock.testing import TcpLease, activated

needs_uvicorn = pytest.mark.skipif(not importlib.util.find_spec("uvicorn"), reason="uvicorn is not installed")
needs_gunicorn = pytest.mark.skipif(not importlib.util.find_spec("gunicorn"), reason="gunicorn is not installed")

ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"served"})
"""
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "6")])
    return [b"served"]
"""
SERVER = """
import http.server, socket, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"served")

listener = socket.socket(fileno=int(sys.argv[1]))
with http.server.HTTPServer(listener.getsockname(), Handler, bind_and_activate=False) as server:
    server.socket.close()
    server.socket = listener
    server.serve_forever()
"""


def ask(lease: TcpLease) -> bytes:
    client = http.client.HTTPConnection(lease.host, lease.port, timeout=60)
    try:
        client.request("GET", "/")
        return client.getresponse().read()
    finally:
        client.close()


def check_served(lease: TcpLease, command: list[str], directory: Path) -> None:
    """Start a server with the lease and close ours; it serves until it is told to end."""
    with subprocess.Popen(command, pass_fds=lease.pass_fds, cwd=directory, stdin=subprocess.DEVNULL) as server:
        try:
            assert ask(lease) == b"served"
            assert ask(lease) == b"served"
        finally:
            server.terminate()
            server.wait(60)


def test_http_server_in_a_thread(tcp_listener: TcpLease) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(tcp_listener.address, Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = tcp_listener
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        assert ask(tcp_listener) == b""
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


def test_any_program_that_takes_a_number(tcp_listener: TcpLease, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    check_served(tcp_listener, [sys.executable, "server.py", str(tcp_listener.fileno())], tmp_path)


@needs_uvicorn
def test_uvicorn_takes_fd(tcp_listener: TcpLease, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(ASGI)
    command = [sys.executable, "-m", "uvicorn", "served:app", "--fd", str(tcp_listener.fileno()), "--lifespan", "off"]
    check_served(tcp_listener, command, tmp_path)


GUNICORN = [sys.executable, "-m", "gunicorn", "--workers", "1", "--worker-tmp-dir", "/dev/shm"]


@needs_gunicorn
def test_gunicorn_takes_a_url(tcp_listener: TcpLease, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(WSGI)
    check_served(tcp_listener, [*GUNICORN, "--bind", tcp_listener.fd_url, "served:app"], tmp_path)


@needs_gunicorn
def test_gunicorn_takes_listen_fds(tcp_listener: TcpLease, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(WSGI)
    check_served(tcp_listener, activated([*GUNICORN, "served:app"], tcp_listener), tmp_path)
