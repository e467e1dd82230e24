"""Every host of the world on the loopback, with a certificate in its name: no client that Python
connects, whichever address it insists on, reaches the network."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from feature_pipeline_tests.providers.server import Answer


class Everywhere:
    """Answers as `answer` says, whatever is asked of whom; `asked` is (host, path with query,
    headers and body as text), in order. `gone` refuses connections instead."""

    def __init__(self, directory: Path) -> None:
        self.answer: Callable[[], Answer] = Answer
        self.asked: list[tuple[str, str]] = []
        self.gone = False
        self.bundle = directory / "authority.pem"
        self._authority = _Authority(directory)
        self.bundle.write_bytes(self._authority.pem)
        self._servers = [self._serve(None), self._serve(self._authority.context())]

    def port(self, asked: int) -> int:
        """Where a connection to that port goes."""
        if self.gone:
            return 9
        return int(self._servers[asked == 443].server_port)

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _serve(self, context: ssl.SSLContext | None) -> ThreadingHTTPServer:
        world = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def _reply(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                said = f"{self.path} {dict(self.headers)} {self.rfile.read(length)!r}"
                world.asked.append((self.headers.get("Host", ""), said))
                answer = world.answer()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.data)))
                self.end_headers()
                self.wfile.write(answer.data[: answer.cut])
                self.close_connection = answer.cut is not None

            do_GET = do_POST = do_HEAD = _reply  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

            def finish_request(self, request: Any, address: Any) -> None:
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
                super().finish_request(request, address)

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


@contextmanager
def everywhere(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Everywhere]:
    """The world, for as long as it lasts: names lead here, and its authority is trusted."""
    world = Everywhere(directory)
    real = socket.getaddrinfo

    def resolved(host: Any, port: Any, *more: Any, **options: Any) -> Any:
        if host in (None, "localhost") or _is_address(host):
            return real(host, port, *more, **options)
        return real("127.0.0.1", world.port(int(port)), *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(world.bundle))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    try:
        yield world
    finally:
        world.close()


def _is_address(host: str | bytes) -> bool:
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True


class _Authority:
    """Makes a certificate for each host that a client asks for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "made for a test")])
        self._contexts: dict[str, ssl.SSLContext] = {}
        certificate = self._certificate(self._name, None)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def context(self) -> ssl.SSLContext:
        """One that looks at the name that is asked for."""
        made = self._context_of("nobody.example")

        def choose(link: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if name:
                link.context = self._context_of(name)

        made.sni_callback = choose  # type: ignore[assignment]
        return made

    def _context_of(self, host: str) -> ssl.SSLContext:
        if host not in self._contexts:
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:60])])
            path = self._directory / f"{len(self._contexts)}.pem"
            path.write_bytes(
                self._certificate(name, host).public_bytes(serialization.Encoding.PEM)
                + self._key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            self._contexts[host] = context
        return self._contexts[host]

    def _certificate(self, name: x509.Name, host: str | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            alternative = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(alternative, critical=False)
        return builder.sign(self._key, hashes.SHA256())
