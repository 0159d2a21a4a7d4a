"""RpcError, its codes, and CodecError."""

from __future__ import annotations

import pickle

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


def test_rpc_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(RpcError(Code.ABORTED, 'again', [{'a': 1}])))
    assert (error.code, error.message, error.details) == (Code.ABORTED, 'again', ({'a': 1},))


def test_codec_error_names_every_fault() -> None:
    error = CodecError(Fault('$.a', 'missing'), Fault('$.b[1]', 'expected int, got str'))
    assert str(error) == '$.a: missing; $.b[1]: expected int, got str'
    assert error.faults[1].path == '$.b[1]'


def test_every_error_has_the_one_base() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(found) > 10
    assert all(issubclass(c, DeguRpcError) for c in found)
    assert not issubclass(DeguRpcError, DeguError)
