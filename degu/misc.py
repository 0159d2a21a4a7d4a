"""Throw-away servers and certificates, for tests and experiments.

Each cleans up after itself when it is closed or collected, and at the latest when Python exits.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from degu import pki, start_server, start_sslserver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.context import ForkProcess
    from types import TracebackType

    from degu.net import Address
    from degu.rgi import App


_END_TIMEOUT_S = 10.0


class _TempProcess:
    """A server process that ends when this object is closed or collected."""

    def __init__(self, process: ForkProcess, address: Address) -> None:
        self.process = process
        self.address = address
        self.close = weakref.finalize(self, _end, process)
        """End the process; a second time does nothing."""

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r})'

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _end(process: ForkProcess) -> None:
    process.terminate()
    process.join(_END_TIMEOUT_S)
    process.kill()  # nothing that is still running then would end by itself
    process.join()
    process.close()


class TempServer(_TempProcess):
    """A `degu.server.Server` in a process of its own; `.address` is where it listens."""

    def __init__(
        self, address: Address, build_func: Callable[..., App] | None, *args: Any, **options: Any
    ) -> None:
        """Start the process; arguments and exceptions as for `degu.start_server()`."""
        super().__init__(*start_server(address, build_func, *args, **options))


class TempSSLServer(_TempProcess):
    """A `degu.server.SSLServer` in a process of its own; `.address` is where it listens."""

    def __init__(
        self,
        sslconfig: Mapping[str, Any],
        address: Address,
        build_func: Callable[..., App] | None,
        *args: Any,
        **options: Any,
    ) -> None:
        """Start the process; arguments and exceptions as for `degu.start_sslserver()`."""
        super().__init__(*start_sslserver(sslconfig, address, build_func, *args, **options))


class TempPKI:
    """A server's and a client's certificate chain, in a temporary directory.

    Each has a user (CA) of its own, as two people's machines have.
    """

    def __init__(self) -> None:
        """Make the keys and certificates. Raises OSError."""
        self.directory = Path(tempfile.mkdtemp(prefix='degu-pki-'))
        self.close = weakref.finalize(self, shutil.rmtree, self.directory)
        """Remove the files; a second time does nothing."""
        for name in ('server', 'client'):
            self._write_chain(name)

    def __enter__(self) -> TempPKI:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_chain(self, name: str) -> None:
        now = datetime.now(UTC)
        user_key = pki.build_key()
        user_cert = pki.build_user_cert(user_key, now)
        key = pki.build_key()
        cert = pki.build_machine_cert(user_key, key.public_key(), now)
        pki.write_cert_file(self.directory / f'{name}-ca.pem', user_cert)
        pki.write_cert_file(self.directory / f'{name}-cert.pem', cert)
        pki.write_key_file(self.directory / f'{name}-key.pem', key)

    def _path(self, name: str) -> str:
        return str(self.directory / f'{name}.pem')

    def get_server_config(self) -> dict[str, Any]:
        """Return the config of a server that takes the client's chain."""
        return {
            'cert_file': self._path('server-cert'),
            'key_file': self._path('server-key'),
            'ca_file': self._path('client-ca'),
        }

    def get_client_config(self) -> dict[str, Any]:
        """Return the config of a client that has a certificate and takes the server's chain.

        Names are not checked: the server is known by its CA, whatever its address is today.
        """
        return {
            'cert_file': self._path('client-cert'),
            'key_file': self._path('client-key'),
            'ca_file': self._path('server-ca'),
            'check_hostname': False,
        }

    def get_anonymous_server_config(self) -> dict[str, Any]:
        """Return the config of a server that takes clients without a certificate."""
        return {
            'cert_file': self._path('server-cert'),
            'key_file': self._path('server-key'),
            'allow_unauthenticated_clients': True,
        }

    def get_anonymous_client_config(self) -> dict[str, Any]:
        """Return the config of a client without a certificate."""
        return {'ca_file': self._path('server-ca'), 'check_hostname': False}
