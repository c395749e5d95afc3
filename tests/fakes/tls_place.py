"""Where an agent may listen for HTTPS, and everyone's certificates, made as a fleet makes them."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from fedctl.release.certificates import Authority
from fedctl.transport.base import ClientIdentity
from fedctl_wire.signing import generate_key, key_id, private_key_to_pem, public_key

FLEET = "3f2a0000-0000-4000-8000-000000000000"
ENROLLED_AT = "2026-01-01T00:00:00.000Z"


class Fleet:
    """A root whose files, with those of operators and devices, are in a directory."""

    def __init__(self, directory: Path, *, uuid: str = FLEET) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.authority = Authority(generate_key(), uuid)
        self._directory = directory
        (directory / "authority.pem").write_text(self.authority.certificate().pem)

    def operator(self, name: str = "operator") -> ClientIdentity:
        """An operator's key and certificate."""
        key = generate_key()
        pem = self.authority.operator(name, public_key(key)).pem
        return self._write(name, pem, private_key_to_pem(key))

    def device(self, name: str = "watch-1") -> tuple[ClientIdentity, str]:
        """A device's key and certificate, and its pin."""
        key = generate_key()
        public = public_key(key)
        pem = self.authority.device(name, public, serial=1, enrolled_at=ENROLLED_AT).pem
        return self._write(name, pem, private_key_to_pem(key)), key_id(public)

    def server(self, files: ClientIdentity) -> ssl.SSLContext:
        """What an enrolled device listens with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(self._directory / "authority.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _write(self, name: str, certificate: str, key: bytes) -> ClientIdentity:
        files = ClientIdentity(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        files.certificate.write_text(certificate)
        files.key.write_bytes(key)
        return files


class TlsPlace:
    """A TCP port of this machine that is listened at with TLS; the same one each time."""

    def __init__(self, context: ssl.SSLContext | None, *, host: str = "127.0.0.1") -> None:
        """Take a free port; without a context whoever listens there speaks plainly."""
        self.port = 0
        self._context = context
        self._host = host
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.listen() as probe:
            self.port = probe.getsockname()[1]

    @property
    def url(self) -> str:
        """Of the device that listens here."""
        return (
            f"https://[{self._host}]:{self.port}"
            if ":" in self._host
            else f"https://{self._host}:{self.port}"
        )

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self._host} port {self.port}"

    def listen(self) -> socket.socket:
        """Listen."""
        link = socket.socket(self._family, socket.SOCK_STREAM)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.bind((self._host, self.port))
        link.listen(128)
        return link

    def secure(self, link: socket.socket) -> socket.socket:
        """Shake hands, in the connection's own thread."""
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(link, server_side=True) if self._context else link

    def remove(self) -> None:
        """Nothing stays."""
