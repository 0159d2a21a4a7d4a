"""RpcError, its codes, and CodecError."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from degu.errors import DeguError
from degu_rpc import errors
from degu_rpc.errors import Code, CodecError, DeguRpcError, Fault, RpcError

# Source: Connect protocol, "Error Codes".
STATUSES = {
    'canceled': 499,
    'unknown': 500,
    'invalid_argument': 400,
    'deadline_exceeded': 504,
    'not_found': 404,
    'already_exists': 409,
    'permission_denied': 403,
    'resource_exhausted': 429,
    'failed_precondition': 400,
    'aborted': 409,
    'out_of_range': 400,
    'unimplemented': 501,
    'internal': 500,
    'unavailable': 503,
    'data_loss': 500,
    'unauthenticated': 401,
}


def test_codes_are_connects_sixteen() -> None:
    assert {code.value for code in Code} == set(STATUSES)


@pytest.mark.parametrize('code', Code)
def test_code_has_the_http_status_of_the_protocol(code: Code) -> None:
    status, reason = code.http_status
    assert status == STATUSES[code.value]
    assert reason


def test_rpc_error_has_its_parts_as_attributes() -> None:
    error = RpcError(Code.NOT_FOUND, 'no such file', [{'path': '/a'}])
    assert (error.code, error.message) == (Code.NOT_FOUND, 'no such file')
    assert error.details == ({'path': '/a'},)
    assert str(error) == 'not_found: no such file'


def test_rpc_error_refuses_a_code_that_is_a_string() -> None:
    with pytest.raises(TypeError, match="'not_found'"):
        RpcError('not_found', 'no such file')  # type: ignore[arg-type]  # what is tested


def test_rpc_error_refuses_what_cannot_travel() -> None:
    with pytest.raises(TypeError, match='message must be a str'):
        RpcError(Code.NOT_FOUND, KeyError('k'))  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match='a detail must be a mapping, not 1'):
        RpcError(Code.NOT_FOUND, 'no such file', [1])  # type: ignore[list-item]  # what is tested


def test_codec_error_names_every_fault() -> None:
    error = CodecError(Fault('$.a', 'missing'), Fault('$.b[1]', 'expected int, got str'))
    assert str(error) == '$.a: missing; $.b[1]: expected int, got str'
    assert error.faults[1].path == '$.b[1]'


CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
ATTEMPT = errors.Attempt('mdns', ('127.0.0.1', 1), 'refused', ConnectionRefusedError(111, 'no'))
ERRORS: list[DeguRpcError] = [
    DeguRpcError('why'),
    RpcError(Code.ABORTED, 'again', [{'a': 1}]),
    errors.CallError(Code.NOT_FOUND, 'no such thing'),
    errors.NotSentError(Code.UNAVAILABLE, 'nobody there'),
    errors.StillRunsError(Code.ABORTED, 'it runs'),
    CodecError(Fault('$.a', 'missing')),
    errors.IdentityError(Path('/home'), 'is empty', 'fill it'),
    errors.ConfigError('port', 'here', 'it is odd', 'give another'),
    errors.NodeRunningError(Path('/home'), 7),
    errors.SystemdError('it did not start', 'look'),
    errors.UnknownPeerError('who?', 'USER', 'MACHINE'),
    errors.UnknownMachineError('attic', ['studio']),
    errors.AmbiguousNameError('studio', {'MACHINE': 'what it is'}),
    errors.UnreachableError('MACHINE', [ATTEMPT]),
    errors.DiscoveryClosedError(),
    errors.TrustError('USER', 'is odd', 'look'),
    errors.UnknownUserError('USER'),
    errors.RemovedUserError('USER', 'Ann', '2026-01-01'),
    errors.RenewalError('no', 'FORMER'),
    errors.PairingError(errors.PairingFault.USED, 'twice', is_claimed=True),
    errors.CodeError('too short'),
    errors.FilesError('why'),
    errors.PathError(b'a/..', 'dots'),
    errors.ListingError('odd'),
    errors.IntegrityError('a', 3, 'other bytes'),
    errors.ContentChangedError('a'),
    errors.BlockedError('a', 'a directory'),
    errors.NoSpaceError('a', 5, 3),
    errors.ShareRefusedError('a', 404, 'Not Found'),
    errors.OfferRefusedError(429, 'too many offers wait'),
    errors.UnknownOfferError('aaaaaaaa'),
    errors.TransferCanceledError(),
    errors.FolderError('folder.db', 'is damaged', 'delete it'),
]


def read_tree() -> dict[str, tuple[str | None, list[str]]]:
    """Return the base and the attributes of each class in the tree of the module's docstring."""
    found: dict[str, tuple[str | None, list[str]]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or '').splitlines():
        if match := re.match(r'([ │├└─]*)(\w+Error)\b(.*)', line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            attributes = re.findall(r'(?<= )\.([a-z_]+)', match[3])
            found[match[2]] = above[depth - 1] if depth else None, attributes
    return found


def test_every_error_is_in_the_list_of_this_test() -> None:
    assert {type(error) for error in ERRORS} == set(CLASSES)


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_error_can_be_pickled(error: DeguRpcError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), repr(copy)) == (str(error), repr(error))
    assert repr(vars(copy)) == repr(vars(error))


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
def test_error_stands_in_the_tree_below_its_base_with_its_attributes(error: DeguRpcError) -> None:
    base, attributes = read_tree()[type(error).__name__]
    assert base in (None, type(error).__bases__[0].__name__)
    inherited = read_tree()[base][1] if base else []
    assert set(attributes) | set(inherited) == set(vars(error))


def test_every_error_has_the_one_base() -> None:
    assert all(issubclass(c, DeguRpcError) for c in CLASSES)
    assert not issubclass(DeguRpcError, DeguError)
