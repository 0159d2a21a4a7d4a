"""What each error means for somebody at a terminal."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from degu.errors import PeerRejectedError, PeerTimeoutError
from degu_rpc import errors
from degu_rpc.cli.failures import explain, explain_node
from degu_rpc.errors import Code, RpcError

REMEDY = 'do that'


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (errors.IdentityError(Path('/home'), 'is odd', REMEDY), 1),
        (errors.ConfigError('port', 'a flag', 'is odd', REMEDY), 2),
        (errors.SystemdError('is odd', REMEDY), 1),
        (errors.TrustError('user', 'is odd', REMEDY), 1),
    ],
)
def test_a_remedy_is_said_once_and_apart(error, status):
    failure = explain(error)
    assert (failure.exit_status, failure.remedy) == (status, REMEDY)
    assert failure.message.endswith('is odd')
    detail = {'kind': type(error).__name__, 'remedy': REMEDY}
    from_node = explain_node(RpcError(Code.FAILED_PRECONDITION, str(error), [detail]))
    assert from_node.build_document() == failure.build_document()


@pytest.mark.parametrize(
    ('error', 'status', 'words'),
    [
        (PeerTimeoutError('read', 1.0), 5, '--timeout'),
        (TimeoutError('too slow'), 5, '--timeout'),
        (ConnectionRefusedError(errno.ECONNREFUSED, 'refused'), 5, 'degu status'),
        (ConnectionResetError(errno.ECONNRESET, 'reset'), 5, 'degu status'),
        (PeerRejectedError('unknown_ca'), 6, 'degu pair'),
        (errors.TransferCanceledError(), 130, ''),
        (errors.OfferRefusedError(200, 'no'), 6, ''),
        (errors.OfferRefusedError(403, 'not you'), 6, ''),
        (errors.OfferRefusedError(404, 'no inbox'), 4, ''),
        (errors.OfferRefusedError(503, 'busy'), 5, ''),
        (errors.OfferRefusedError(413, 'too much'), 1, ''),
        (errors.UnknownOfferError('a'), 4, 'degu inbox'),
        (OSError(errno.ENOSPC, 'full'), 1, ''),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else '',
)
def test_what_the_core_and_the_system_say_has_a_status(error, status, words):
    failure = explain(error)
    assert failure.exit_status == status
    assert words in failure.remedy


def test_what_nobody_foresaw_has_no_meaning():
    assert explain(RuntimeError('odd')) is None
