"""sslscan looks at our TLS port: what is offered, and what a scanner would warn of."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET

import pytest

from degu.server import build_server_sslctx

WAIT_S = 60.0
WEAK_BITS = 112  # SP 800-57: below that nothing should be used


@pytest.fixture(params=['certificate required', 'anyone'])
def scan(request, require_program, serve, temp_pki):
    """Give what sslscan found, an element of its report."""
    program = require_program('sslscan')
    config = temp_pki.get_server_config()
    if request.param == 'anyone':
        config = temp_pki.get_anonymous_server_config()
    server = serve(lambda c, r: (200, 'OK', {}, b'hello'), sslctx=build_server_sslctx(config))
    target = '{}:{}'.format(*server.address)
    done = subprocess.run(
        [program, '--xml=-', target], capture_output=True, check=True, timeout=WAIT_S
    )
    scan = ET.fromstring(done.stdout).find('ssltest')
    assert scan is not None, done
    return scan


def test_a_scanner_finds_tls_1_3_and_nothing_else(scan):
    found = {f'{p.get("type")} {p.get("version")}': p.get('enabled') for p in scan.iter('protocol')}
    assert found == {
        **dict.fromkeys(['ssl 2', 'ssl 3', 'tls 1.0', 'tls 1.1', 'tls 1.2'], '0'),
        'tls 1.3': '1',
    }
    assert {cipher.get('sslversion') for cipher in scan.iter('cipher')} == {'TLSv1.3'}


def test_a_scanner_finds_nothing_to_warn_of(scan):
    """But that the CA is a private one, which it cannot tell: it was given no CA."""
    assert scan.find('renegotiation').attrib == {'supported': '0', 'secure': '0'}
    assert [h.get('vulnerable') for h in scan.iter('heartbleed')] == ['0']
    compression = scan.find('compression')  # where it was built without, it says nothing
    assert compression is None or compression.get('supported') == '0'
    ciphers = list(scan.iter('cipher'))
    assert {cipher.get('strength') for cipher in ciphers} <= {'acceptable', 'strong'}
    assert min(int(cipher.get('bits')) for cipher in ciphers) >= 128
    assert min(int(group.get('bits')) for group in scan.iter('group')) >= WEAK_BITS


def test_a_scanner_finds_the_certificate_in_order(scan):
    certificate = scan.find('certificates/certificate')
    assert certificate.findtext('signature-algorithm') == 'ecdsa-with-SHA256'
    assert certificate.find('pk').attrib == {
        'error': 'false',
        'type': 'EC',
        'curve_name': 'prime256v1',
        'bits': '128',
    }
    assert certificate.findtext('self-signed') == 'false'
    assert certificate.findtext('expired') == 'false'
