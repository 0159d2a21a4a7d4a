"""Which machine a client talks to: by id, never by host name or address.

There are no threads and no locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu import pki
from degu.client import Connection, SSLClient

if TYPE_CHECKING:
    import ssl

    from degu.net import Address


def check_server(cert_der: bytes | None, machine_id: str) -> None:
    """Check that a server is the machine a client meant to call.

    *cert_der* is the `peer_certificate` of a client's connection (`SSLSocket.getpeercert(True)`),
    whose chain the handshake has verified; *machine_id* is the expected one, compared whole.

    Raises pki.CertificateError (MACHINE_ID for another machine, with both ids).
    """
    found = pki.parse_machine_cert(cert_der).machine_id
    if found != machine_id:
        raise pki.CertificateError(
            pki.CertificateFault.MACHINE_ID, f'expected {machine_id}, found {found}'
        )


class MachineClient(SSLClient):
    """A client of one machine, wherever it is: each connection proves the machine's id."""

    def __init__(
        self, sslctx: ssl.SSLContext, address: Address, machine_id: str, **options: Any
    ) -> None:
        """Remember where and whom to connect to; other arguments as for `degu.client.SSLClient`."""
        super().__init__(sslctx, address, **options)
        self.machine_id = machine_id

    def connect(self) -> Connection:
        """Connect and check who is there.

        Raises pki.CertificateError for another machine, and what SSLClient.connect() raises.
        """
        connection = super().connect()
        try:
            check_server(connection.peer_certificate, self.machine_id)
        except BaseException:
            connection.close()
            raise
        return connection
