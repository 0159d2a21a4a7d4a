"""degu_rpc.peers.pairing.invitation: what a camera reads is what the window is."""

from __future__ import annotations

import ipaddress
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu_rpc.errors import CodeError
from degu_rpc.peers.pairing.codes import RANDOM_BITS, build_code
from degu_rpc.peers.pairing.invitation import (
    Invitation,
    format_invitation,
    format_qr,
    parse_invitation,
)

if TYPE_CHECKING:
    from pathlib import Path

CODE = build_code(0x123456789)


def can_be_reached(ip) -> bool:
    if ip.version == 6 and ip in ipaddress.ip_network('::ffff:0:0/96'):
        return False
    return not (ip.is_multicast or str(ip) in ('0.0.0.0', '::', '255.255.255.255'))


PORTS = st.integers(1, 65535)
ADDRESSES = st.lists(
    st.tuples(st.ip_addresses(v=4).filter(can_be_reached).map(str), PORTS)
    | st.tuples(
        st.ip_addresses(v=6).filter(can_be_reached).map(str), PORTS, st.just(0), st.just(0)
    ),
    min_size=1,
    max_size=8,
)
SCALE = 4  # pixels of a module


@given(bits=st.integers(0, 2**RANDOM_BITS - 1), addresses=ADDRESSES)
def test_a_uri_is_parsed_as_it_was_meant(bits: int, addresses) -> None:
    code = build_code(bits)
    assert parse_invitation(format_invitation(code, addresses)) == Invitation(
        code, tuple(addresses)
    )


def test_a_uri_looks_as_documented() -> None:
    addresses = [('192.168.1.7', 8443), ('fe80::1', 8443, 0, 3)]
    uri = 'degu-pair:4HMASW9R?at=192.168.1.7:8443&at=[fe80::1]:8443'
    assert format_invitation(CODE, addresses) == uri


@pytest.mark.parametrize(
    'addresses',
    [
        pytest.param([], id='none'),
        pytest.param([('192.168.1.7', 8443)] * 9, id='nine'),
        pytest.param([('0.0.0.0', 8443)], id='all of IPv4'),
        pytest.param([('::', 8443, 0, 0)], id='all of IPv6'),
        pytest.param([('224.0.0.1', 8443)], id='a group of IPv4'),
        pytest.param([('ff02::1', 8443, 0, 0)], id='a group of IPv6'),
        pytest.param([('255.255.255.255', 8443)], id='a broadcast'),
        pytest.param([('::ffff:192.168.1.7', 8443, 0, 0)], id='IPv4 as IPv6'),
        pytest.param([('192.168.1.7', 0)], id='no port'),
        pytest.param([('my-machine', 8443)], id='a name'),
        pytest.param(['/run/my.socket'], id='a unix socket'),
    ],
)
def test_what_nobody_could_connect_to_is_not_told(addresses) -> None:
    with pytest.raises(ValueError):
        format_invitation(CODE, addresses)


@pytest.mark.parametrize(
    'text',
    [
        pytest.param('https://4HMASW9R?at=192.168.1.7:8443', id='another scheme'),
        pytest.param('degu-pair:4HMASW9S?at=192.168.1.7:8443', id='a wrong check'),
        pytest.param('degu-pair:4HMASW9R', id='no address'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.7', id='no port'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.7:0', id='port 0'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.7:65536', id='port 65536'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.256:8443', id='no IPv4 address'),
        pytest.param('degu-pair:4HMASW9R?at=[1::2::3]:8443', id='no IPv6 address'),
        pytest.param('degu-pair:4HMASW9R?at=[192.168.1.7]:8443', id='IPv4 in brackets'),
        pytest.param('degu-pair:4hmasw9r?at=192.168.1.7:8443', id='a code in lower case'),
        pytest.param('degu-pair:4HMASW9R?at=0.0.0.0:1', id='all of IPv4'),
        pytest.param('degu-pair:4HMASW9R?at=[::]:22', id='all of IPv6'),
        pytest.param('degu-pair:4HMASW9R?at=224.0.0.1:9', id='a group of IPv4'),
        pytest.param('degu-pair:4HMASW9R?at=[ff02::1]:9', id='a group of IPv6'),
        pytest.param('degu-pair:4HMASW9R?at=255.255.255.255:9', id='a broadcast'),
        pytest.param('degu-pair:4HMASW9R?at=[::ffff:127.0.0.1]:9', id='IPv4 as IPv6'),
        pytest.param('degu-pair:4HMASW9R?at=[::ffff:7f00:1]:9', id='IPv4 as IPv6, in hex'),
        pytest.param('degu-pair:4HMASW9R?at=[0:0::1]:9', id='another spelling'),
        pytest.param('degu-pair:4HMASW9R?at=evil.example:8443', id='a name'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.7:8443&to=x', id='something else'),
        pytest.param('degu-pair:4HMASW9R?' + '&'.join(['at=192.168.1.7:1'] * 9), id='nine'),
        pytest.param('degu-pair:4HMASW9R?at=192.168.1.7:8443\n', id='a line end'),
    ],
)
def test_another_uri_is_refused(text: str) -> None:
    with pytest.raises(CodeError):
        parse_invitation(text)


@given(st.text() | st.text().map('degu-pair:4HMASW9R?at='.__add__))
def test_any_text_is_an_invitation_or_a_code_error(text: str) -> None:
    try:
        assert parse_invitation(text).code == CODE
    except CodeError:
        return


@pytest.mark.parametrize('count', [1, 8])
def test_a_scanner_reads_the_uri_from_the_screen(
    count: int, tmp_path: Path, require_program
) -> None:
    addresses = [(f'192.168.1.{last}', 8443) for last in range(1, count + 1)]
    scanned = subprocess.run(
        [
            require_program('zbarimg'),
            '--quiet',
            '--raw',
            write_screen(format_qr(CODE, addresses), tmp_path),
        ],
        capture_output=True,
        check=True,
    )
    assert parse_invitation(scanned.stdout.decode().rstrip('\n')) == Invitation(
        CODE, tuple(addresses)
    )


def write_screen(text: str, directory: Path) -> Path:
    """Draw the text as a dark terminal shows it, as a portable graymap."""
    rows = []
    for line in text.splitlines():
        rows.append([255 if block in '█▀' else 0 for block in line])
        rows.append([255 if block in '█▄' else 0 for block in line])
    pixels = b''.join(bytes(p for p in row for _ in range(SCALE)) * SCALE for row in rows)
    path = directory / 'screen.pgm'
    path.write_bytes(b'P5 %d %d 255\n' % (len(rows[0]) * SCALE, len(rows) * SCALE) + pixels)
    return path
