"""degu_rpc.peers.pairing with a real window: what two machines that pair get of each other."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from degu import IPv4_LOOPBACK, pki
from degu.server import Server, SSLServer
from degu_rpc import Joining, PairingWindow, Peering, pair
from degu_rpc.errors import CodeError, PairingFault
from degu_rpc.peers import Authenticated, Identity, IdentityError, MachineClient, TrustStore
from degu_rpc.peers.agreement import Paired

NOW = datetime.now(UTC)


def call(caller, called) -> bytes:
    """Have one home call the other, as they would after pairing."""

    def app(connection, request):
        peer = connection['_peer']
        return 200, 'OK', {}, f'{peer.name}: {" ".join(sorted(peer.roles))}'.encode()

    with SSLServer(
        called.trust.server_sslctx,
        IPv4_LOOPBACK,
        Authenticated(app, called.trust),
    ) as server:
        client = MachineClient(caller.trust, server.address, called.identity.machine_id)
        with client.connect() as connection:
            return connection.get('/').body.read()


def paired_with(home) -> Paired:
    return Paired(home.identity.user_id, home.identity.machine_id, home.name)


# --- peer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'spell', [str, lambda code: code.words, lambda code: code], ids=['short', 'words', 'code']
)
def test_two_users_trust_each_other_after_one_short_code(ada, ben, open_window, spell) -> None:
    window = open_window(ada.peering())
    assert pair(window.address, spell(window.code), ben.peering()) == paired_with(ada)
    assert window.wait() == paired_with(ben)
    assert ada.friends == {ben.identity.user_id: 'Ben'}
    assert ben.friends == {ada.identity.user_id: 'Ada'}
    user = ada.trust.users()[ben.identity.user_id]
    assert user.machines == {ben.identity.machine_id: 'Ben'}


def test_they_can_call_each_other_then(ada, ben, open_window) -> None:
    window = open_window(ada.peering(roles={'reader', 'writer'}))
    pair(window.address, window.code, ben.peering())
    assert call(ben, ada) == b'Ben: reader writer'
    assert call(ada, ben) == b'Ada: peer'


def test_a_code_is_drawn_anew_for_each_window(ada) -> None:
    codes = {PairingWindow(ada.peering()).code for _ in range(20)}
    assert len(codes) == 20


def test_a_removed_user_comes_back_when_a_code_is_typed(ada, ben, open_window) -> None:
    for home, other in ((ada, ben), (ben, ada)):
        home.trust.add(other.identity.user_cert, other.name, {'peer'}, how='by hand', now=NOW)
        home.trust.remove(other.identity.user_id, NOW)
    window = open_window(ada.peering())
    pair(window.address, window.code, ben.peering())
    assert ada.friends == {ben.identity.user_id: 'Ben'}


def test_one_sided_trust_is_mended_by_pairing_again(ada, ben, open_window) -> None:
    ada.trust.add(ben.identity.user_cert, 'Ben', {'peer'}, how='by hand', now=NOW)
    window = open_window(ada.peering())
    pair(window.address, window.code, ben.peering())
    assert ben.friends == {ada.identity.user_id: 'Ada'}


def test_users_who_trust_each_other_already_are_told_and_nothing_changes(
    ada, ben, open_window, refused
) -> None:
    for home, other in ((ada, ben), (ben, ada)):
        home.trust.add(other.identity.user_cert, 'as before', {'as before'}, how='by hand', now=NOW)
    window = open_window(ada.peering())
    with refused(PairingFault.ALREADY_PAIRED):
        pair(window.address, window.code, ben.peering())
    with refused(PairingFault.ALREADY_PAIRED):
        window.wait()
    assert list(ada.friends.values()) == list(ben.friends.values()) == ['as before']


def test_a_user_does_not_pair_with_itself_and_burns_nothing(
    ada, ben, open_window, tmp_path, refused
) -> None:
    second = Identity.import_user(
        tmp_path / 'second', ada.identity.export_user('correct horse'), 'correct horse', NOW
    )
    window = open_window(ada.peering())
    with refused(PairingFault.SAME_USER):
        pair(window.address, window.code, Peering(second, TrustStore(second), 'second', NOW))
    pair(window.address, window.code, ben.peering())


@pytest.mark.parametrize('name', ['', 'x' * 65, 'a\nb', '\x1b[2J', '\x9b'], ids=repr)
def test_a_name_that_cannot_be_shown_is_refused_at_once(ada, tmp_path, name: str) -> None:
    for build in (
        lambda: Peering(ada.identity, ada.trust, name, NOW),
        lambda: Joining(tmp_path / 'new', name, NOW),
        lambda: ada._replace(name=name).admission(),
    ):
        with pytest.raises(ValueError, match='1 to 64 characters'):
            build()


@pytest.mark.parametrize('roles', [{'owner'}, 'peer'], ids=['owner', 'a str'])
def test_roles_that_cannot_be_given_are_refused_at_once(ada, roles) -> None:
    with pytest.raises(ValueError, match='none to be given'):
        ada.peering(roles=roles)


# --- join ---------------------------------------------------------------------------------------


def test_a_new_machine_joins_after_one_short_code(ada, open_window, tmp_path) -> None:
    window = open_window(ada.admission())
    paired = pair(window.address, window.code, Joining(tmp_path / 'phone', 'phone', NOW))
    phone = Identity.open(tmp_path / 'phone')
    assert paired == paired_with(ada)
    assert window.wait() == Paired(ada.identity.user_id, phone.machine_id, 'phone')
    assert phone.user_id == ada.identity.user_id
    assert not phone.can_certify
    assert ada.machines == {phone.machine_id: 'phone'}
    assert TrustStore(phone).users()[phone.user_id].machines == {ada.identity.machine_id: 'Ada'}


def test_a_joined_machine_is_the_owner(ada, open_window, tmp_path) -> None:
    window = open_window(ada.admission())
    pair(window.address, window.code, Joining(tmp_path / 'phone', 'phone', NOW))
    identity = Identity.open(tmp_path / 'phone')
    phone = ada._replace(identity=identity, trust=TrustStore(identity))
    assert call(phone, ada) == call(ada, phone) == b'me: owner'


def test_a_machine_that_has_an_identity_does_not_join(ben) -> None:
    with pytest.raises(FileExistsError, match='holds an identity already'):
        Joining(ben.identity.directory, 'Ben', NOW)


def test_a_machine_without_the_key_of_the_user_admits_nobody(ada) -> None:
    (ada.identity.directory / 'user.key').unlink()
    with pytest.raises(IdentityError, match='do this on the machine where the user was made'):
        ada.admission()


def test_a_clock_that_is_wrong_is_told_and_nothing_is_stored(
    ada, open_window, tmp_path, refused
) -> None:
    window = open_window(ada.admission())
    past = NOW - timedelta(days=30)
    with refused(PairingFault.CERTIFICATE) as caught:
        pair(window.address, window.code, Joining(tmp_path / 'phone', 'phone', past))
    assert f'our clock says {past}' in str(caught.value)
    with refused(PairingFault.CERTIFICATE):
        window.wait()
    assert not (tmp_path / 'phone').exists()
    assert ada.machines == {}


# --- what keeps them from it --------------------------------------------------------------------


def test_a_slip_in_the_code_is_found_before_anything_is_sent(ben) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(('127.0.0.1', 0))
        with pytest.raises(CodeError):
            pair(nobody_listens.getsockname(), '4HMA-SW9S', ben.peering())


@pytest.mark.parametrize('window_joins', [False, True], ids=['to join a window', 'to pair'])
def test_another_intent_is_told_and_burns_nothing(
    ada, ben, open_window, tmp_path, window_joins: bool, refused
) -> None:
    joining = Joining(tmp_path / 'phone', 'phone', NOW)
    window = open_window(ada.admission() if window_joins else ada.peering())
    wrong, right = (ben.peering(), joining) if window_joins else (joining, ben.peering())
    with refused(PairingFault.INTENT):
        pair(window.address, window.code, wrong)
    assert pair(window.address, window.code, right) == paired_with(ada)


def test_nobody_there_is_told(ben, refused) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(('127.0.0.1', 0))
        with refused(PairingFault.UNREACHABLE):
            pair(nobody_listens.getsockname(), '4HMA-SW9R', ben.peering())


def test_a_server_without_tls_is_told(ben, refused) -> None:
    app = lambda connection, request: (200, 'OK', {}, None)  # noqa: E731
    with Server(IPv4_LOOPBACK, app) as server, refused(PairingFault.UNREACHABLE):
        pair(server.address, '4HMA-SW9R', ben.peering())


def test_a_server_that_is_no_machine_is_told(ada, ben, tmp_path, refused) -> None:
    # A CA certificate is none of a machine.
    sslctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    sslctx.minimum_version = ssl.TLSVersion.TLSv1_3
    sslctx.options |= ssl.OP_NO_COMPRESSION
    sslctx.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    sslctx.num_tickets = 0
    directory = ada.identity.directory
    sslctx.load_cert_chain(directory / 'user.crt', directory / 'user.key')
    app = lambda connection, request: (200, 'OK', {}, None)  # noqa: E731
    with SSLServer(sslctx, IPv4_LOOPBACK, app) as server, refused(PairingFault.CERTIFICATE):
        pair(server.address, '4HMA-SW9R', ben.peering())


def test_a_certificate_that_ran_out_is_told(ada, ben, open_window, refused) -> None:
    key = ada.identity.read_machine_key()
    old = ada.identity.certify(key.public_key(), NOW - timedelta(days=400))
    window = open_window(ada._replace(identity=ada.identity.install(key, old)).peering())
    with refused(PairingFault.CERTIFICATE) as caught:
        pair(window.address, window.code, ben.peering())
    assert 'expired' in str(caught.value)
    assert pki.parse_validity(old).not_after < NOW


@pytest.mark.parametrize('fault', PairingFault, ids=lambda fault: fault.value)
def test_each_reason_has_words_of_its_own(fault: PairingFault) -> None:
    assert len(fault.text) > 30
    assert [f for f in PairingFault if f.text == fault.text] == [fault]
