"""Every exception of the core, on one page.

    DeguError
    ├── ProtocolError            the peer sent what is outside the HTTP subset    .status
    ├── BodyError
    │   ├── UnderFlowError       a body had less than it announced      .received .expected
    │   ├── OverFlowError        a body had more than it announced      .received .expected
    │   ├── BodyClosedError      a body was used twice                            .body
    │   └── BodyTooLargeError    a chunked body was longer than allowed           .max_size
    ├── UnconsumedResponseError  a request before the last response was read      .body
    ├── PeerTimeoutError         the peer was too slow (also a TimeoutError)      .limit .timeout_s
    ├── ClosedConnectionError    the connection is closed (also a ConnectionError)
    ├── PeerRejectedError        the TLS peer refused us (also a ConnectionError) .alert
    ├── rgi.ValidationError      one side broke the application contract
    └── pki.CertificateError     a certificate was refused, in the profile's name .fault .detail
        └── tls.UnverifiedCertificateError    the same by OpenSSL, in a handshake
                                 (also an ssl.SSLCertVerificationError)

A wrong argument is a plain TypeError or ValueError that names the value; what the operating system
says about a socket (refused, unreachable, reset) stays the OSError it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from degu.bodies import AnyBody


class DeguError(Exception):
    """Base of every exception that the core defines."""


class ProtocolError(DeguError):
    """The peer sent bytes that are outside the HTTP subset.

    `.status` is what a server answers with. The message states the rule and never repeats what
    the peer sent, so it is safe to log and to send.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class BodyError(DeguError):
    """A request or response body cannot be used as it was meant to be."""


class UnderFlowError(BodyError):
    """A body ended before its announced end. `.received` and `.expected` are bytes."""

    def __init__(self, received: int, expected: int | None) -> None:
        wanted = 'a final empty chunk' if expected is None else f'{expected} bytes'
        super().__init__(f'the body ended after {received} bytes, expected {wanted}')
        self.received = received
        self.expected = expected


class OverFlowError(BodyError):
    """A body went on after its announced end. `.received` and `.expected` are bytes."""

    def __init__(self, received: int, expected: int) -> None:
        super().__init__(f'the body went on to {received} bytes, expected {expected} bytes')
        self.received = received
        self.expected = expected


class BodyClosedError(BodyError):
    """A body that was used up, or whose connection failed, was used again. `.body` is the body."""

    def __init__(self, body: AnyBody) -> None:
        super().__init__(f'the body was used already: {body!r}; a body can be read or sent once')
        self.body = body


class BodyTooLargeError(BodyError):
    """A chunked body was longer than `.max_size` bytes; the rest of it was not read."""

    def __init__(self, max_size: int) -> None:
        super().__init__(f'the chunked body is longer than {max_size} bytes')
        self.max_size = max_size


class UnconsumedResponseError(DeguError):
    """A request was made before the previous response was read to its end. `.body` is the rest."""

    def __init__(self, body: AnyBody) -> None:
        super().__init__(f'read the previous response to its end first: {body!r}')
        self.body = body


class PeerTimeoutError(DeguError, TimeoutError):
    """The peer was slower than a limit allows: `.limit` names it, `.timeout_s` is its value."""

    def __init__(self, limit: str, timeout_s: float) -> None:
        super().__init__(f'the peer was too slow: {limit} ({timeout_s:g} s)')
        self.limit = limit
        self.timeout_s = timeout_s


class ClosedConnectionError(DeguError, ConnectionError):
    """The connection is closed: by close(), by an earlier error, or by the peer."""


class PeerRejectedError(DeguError, ConnectionError):
    """The other side of TLS did not accept our certificate, or that we have none.

    `.alert` is the name of the TLS alert that it sent, such as 'unknown_ca', or None where it only
    ended the connection. Source: RFC 8446 §6.2.

    In TLS 1.3 a client finishes its handshake before the server has looked at the client's
    certificate, so the refusal arrives where the first response should be. Source: RFC 8446 §4.4.
    """

    def __init__(self, message: str, alert: str | None = None) -> None:
        super().__init__(message)
        self.alert = alert
