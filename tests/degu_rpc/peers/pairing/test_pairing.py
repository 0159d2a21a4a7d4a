"""degu_rpc.peers.pairing with real windows: what two machines that pair get of each other."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from degu import IPv4_LOOPBACK, pki
from degu.server import Server, SSLServer
from degu_rpc import Intent, PairingWindow, join, pair
from degu_rpc.errors import CodeError, PairingFault
from degu_rpc.peers import Authenticated, Identity, IdentityError, MachineClient, TrustStore
from degu_rpc.peers.pairing.sides import Paired

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
    window = open_window(ada)
    assert ben.pair(window.address, spell(window.code)) == paired_with(ada)
    assert window.wait() == paired_with(ben)
    assert ada.friends == {ben.identity.user_id: 'Ben'}
    assert ben.friends == {ada.identity.user_id: 'Ada'}
    user = ada.trust.users()[ben.identity.user_id]
    assert user.machines == {ben.identity.machine_id: 'Ben'}


def test_another_machine_of_a_known_user_changes_neither_name_nor_roles(
    ada, ben, open_window, tmp_path
) -> None:
    ben.trust.add(ada.identity.user_cert, 'My Ada', {'family'})
    key = pki.build_key()
    cert = ada.identity.certify(key.public_key())
    phone = Identity.join(tmp_path / 'phone', key, cert, ada.identity.user_cert)
    with PairingWindow(TrustStore(phone), 'phone') as window:
        ben.pair(window.address, window.code)
    user = ben.trust.users()[ada.identity.user_id]
    assert (user.name, user.roles) == ('My Ada', {'family', 'peer'})
    assert user.machines == {phone.machine_id: 'phone'}


def test_what_is_no_store_or_intent_or_open_window_is_told(ada) -> None:
    for use in (
        lambda: PairingWindow(ada.identity, 'Ada'),
        lambda: pair(IPv4_LOOPBACK, '4HMA-SW9R', ada.identity, 'Ada'),
    ):
        with pytest.raises(TypeError, match='trust must be a TrustStore'):
            use()
    with pytest.raises(TypeError, match="intent must be an Intent, not 'join'"):
        PairingWindow(ada.trust, 'Ada', intent='join')
    with pytest.raises(RuntimeError, match='the window is not open'):
        PairingWindow(ada.trust, 'Ada').wait()


def test_they_can_call_each_other_then(ada, ben, open_window) -> None:
    window = open_window(ada, roles={'reader', 'writer'})
    ben.pair(window.address, window.code)
    assert call(ben, ada) == b'Ben: reader writer'
    assert call(ada, ben) == b'Ada: peer'


def test_a_code_is_drawn_anew_for_each_window(ada) -> None:
    codes = {PairingWindow(ada.trust, 'Ada').code for _ in range(20)}
    assert len(codes) == 20


def test_a_removed_user_comes_back_when_a_code_is_typed(ada, ben, open_window) -> None:
    for home, other in ((ada, ben), (ben, ada)):
        home.trust.add(other.identity.user_cert, other.name, {'peer'}, how='by hand', now=NOW)
        home.trust.remove(other.identity.user_id, NOW)
    window = open_window(ada)
    ben.pair(window.address, window.code)
    assert ada.friends == {ben.identity.user_id: 'Ben'}


def test_one_sided_trust_is_mended_by_pairing_again(ada, ben, open_window) -> None:
    ada.trust.add(ben.identity.user_cert, 'Ben', {'peer'}, how='by hand', now=NOW)
    window = open_window(ada)
    ben.pair(window.address, window.code)
    assert ben.friends == {ada.identity.user_id: 'Ada'}


def test_users_who_trust_each_other_already_are_told_and_nothing_changes(
    ada, ben, open_window, refused
) -> None:
    for home, other in ((ada, ben), (ben, ada)):
        home.trust.add(other.identity.user_cert, 'as before', {'as before'}, how='by hand', now=NOW)
    window = open_window(ada)
    with refused(PairingFault.ALREADY_PAIRED):
        ben.pair(window.address, window.code)
    with refused(PairingFault.ALREADY_PAIRED):
        window.wait()
    assert list(ada.friends.values()) == list(ben.friends.values()) == ['as before']


def test_a_user_does_not_pair_with_itself_and_burns_nothing(
    ada, ben, open_window, tmp_path, refused
) -> None:
    second = Identity.import_user(
        tmp_path / 'second', ada.identity.export_user('correct horse'), 'correct horse', NOW
    )
    window = open_window(ada)
    with refused(PairingFault.SAME_USER):
        pair(window.address, window.code, TrustStore(second), 'second')
    ben.pair(window.address, window.code)


@pytest.mark.parametrize('name', ['', 'x' * 65, 'a\nb', '\x1b[2J', '\x9b'], ids=repr)
def test_a_name_that_cannot_be_shown_is_refused_at_once(ada, tmp_path, name: str) -> None:
    address = ('127.0.0.1', 1)
    for use in (
        lambda: PairingWindow(ada.trust, name),
        lambda: PairingWindow(ada.trust, name, intent=Intent.JOIN),
        lambda: pair(address, '4HMA-SW9R', ada.trust, name),
        lambda: join(address, '4HMA-SW9R', tmp_path / 'new', name),
    ):
        with pytest.raises(ValueError, match='1 to 64 characters'):
            use()


@pytest.mark.parametrize('roles', [{'owner'}, 'peer'], ids=['owner', 'a str'])
def test_roles_that_cannot_be_given_are_refused_at_once(ada, roles) -> None:
    with pytest.raises(ValueError, match='none to be given'):
        PairingWindow(ada.trust, 'Ada', roles=roles)
    with pytest.raises(ValueError, match='none to be given'):
        ada.pair(('127.0.0.1', 1), '4HMA-SW9R', roles=roles)


@pytest.mark.parametrize('roles', [{'reader'}, (), 'peer'], ids=str)
def test_a_machine_that_joins_cannot_be_given_roles(ada, roles) -> None:
    with pytest.raises(ValueError, match='a machine that joins is the owner'):
        PairingWindow(ada.trust, 'Ada', intent=Intent.JOIN, roles=roles)


def test_a_machine_that_got_another_key_pairs_as_who_it_is_now(ada, ben, open_window) -> None:
    now = ada._replace(identity=ada.identity.rotate(NOW))
    window = open_window(ada)
    assert ben.pair(window.address, window.code) == paired_with(now)


# --- join ---------------------------------------------------------------------------------------


def test_a_new_machine_joins_after_one_short_code(ada, open_window, tmp_path) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    phone = join(window.address, window.code, tmp_path / 'phone', 'phone')
    assert window.wait() == Paired(ada.identity.user_id, phone.machine_id, 'phone')
    assert phone == Identity.open(tmp_path / 'phone')
    assert phone.user_id == ada.identity.user_id
    assert not phone.can_certify
    assert ada.machines == {phone.machine_id: 'phone'}
    assert TrustStore(phone).users()[phone.user_id].machines == {ada.identity.machine_id: 'Ada'}


def test_a_joined_machine_is_the_owner(ada, open_window, tmp_path) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    identity = join(window.address, window.code, tmp_path / 'phone', 'phone')
    phone = ada._replace(identity=identity, trust=TrustStore(identity))
    assert call(phone, ada) == call(ada, phone) == b'me: owner'


@pytest.fixture
def expired(ada, tmp_path) -> Identity:
    """A machine of Ada's whose certificate ran out."""
    key = pki.build_key()
    cert = ada.identity.certify(key.public_key(), NOW - timedelta(days=400))
    identity = Identity.join(tmp_path / 'phone', key, cert, ada.identity.user_cert)
    with pytest.raises(pki.CertificateError):
        pki.check_valid(identity.machine_cert, NOW)
    return identity


def test_a_machine_whose_certificate_ran_out_joins_again_with_its_key(
    ada, expired, open_window
) -> None:
    window = open_window(ada, intent=Intent.JOIN)
    phone = join(window.address, window.code, expired.directory, 'phone')
    assert phone.machine_id == expired.machine_id
    pki.check_valid(phone.machine_cert, NOW)
    assert ada.machines == {phone.machine_id: 'phone'}
    assert call(ada._replace(identity=phone, trust=TrustStore(phone)), ada) == b'me: owner'


def test_a_machine_of_another_user_is_told_and_burns_nothing(
    ada, ben, expired, open_window, tmp_path, refused
) -> None:
    window = open_window(ben, intent=Intent.JOIN)
    with refused(PairingFault.OTHER_USER):
        join(window.address, window.code, expired.directory, 'phone')
    assert Identity.open(expired.directory) == expired
    assert join(window.address, window.code, tmp_path / 'new', 'new')


def test_a_machine_that_can_certify_does_not_join(ben) -> None:
    with pytest.raises(FileExistsError, match='holds an identity already'):
        join(('127.0.0.1', 1), '4HMA-SW9R', ben.identity.directory, 'Ben')


def test_a_machine_without_the_key_of_the_user_admits_nobody(ada) -> None:
    (ada.identity.directory / 'user.key').unlink()
    with pytest.raises(IdentityError, match='on the machine where the user was made'):
        PairingWindow(ada.trust, 'Ada', intent=Intent.JOIN)


def test_a_clock_that_is_wrong_is_told_and_nothing_is_stored(
    ada, open_window, tmp_path, refused, monkeypatch
) -> None:
    class Past(datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW - timedelta(days=30)

    monkeypatch.setattr('degu_rpc.peers.pairing.sides.datetime', Past)  # the joiner's alone
    window = open_window(ada, intent=Intent.JOIN)
    with refused(PairingFault.CERTIFICATE) as caught:
        join(window.address, window.code, tmp_path / 'phone', 'phone')
    assert f'our clock says {Past.now()}' in str(caught.value)
    with refused(PairingFault.CERTIFICATE):
        window.wait()
    assert not (tmp_path / 'phone').exists()
    assert ada.machines == {}


# --- what keeps them from it --------------------------------------------------------------------


def test_a_slip_in_the_code_is_found_before_anything_is_sent(ben) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(('127.0.0.1', 0))
        with pytest.raises(CodeError):
            ben.pair(nobody_listens.getsockname(), '4HMA-SW9S')


@pytest.mark.parametrize('intent', Intent, ids=lambda intent: intent.value)
def test_another_intent_is_told_and_burns_nothing(
    ada, ben, open_window, tmp_path, intent: Intent, refused
) -> None:
    window = open_window(ada, intent=intent)
    uses = [
        lambda: ben.pair(window.address, window.code),
        lambda: join(window.address, window.code, tmp_path / 'phone', 'phone'),
    ]
    right, wrong = uses if intent is Intent.PEER else reversed(uses)
    with refused(PairingFault.INTENT):
        wrong()
    assert right()
    assert window.wait()


def test_nobody_there_is_told(ben, clock, refused) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(('127.0.0.1', 0))
        with refused(PairingFault.UNREACHABLE):
            ben.pair(nobody_listens.getsockname(), '4HMA-SW9R', clock=clock, pause=clock.pause)


def test_a_server_without_tls_is_told(ben, clock, refused) -> None:
    app = lambda connection, request: (200, 'OK', {}, None)  # noqa: E731
    with Server(IPv4_LOOPBACK, app) as server:
        with refused(PairingFault.MESSAGE) as caught:
            ben.pair(server.address, '4HMA-SW9R', clock=clock, pause=clock.pause)
        assert f'{server.address!r} is no pairing window' in str(caught.value)


def test_the_service_of_the_other_machine_is_no_window_and_that_is_told(
    ada, ben, clock, refused
) -> None:
    app = lambda connection, request: (200, 'OK', {}, None)  # noqa: E731
    with (
        SSLServer(ada.trust.server_sslctx, IPv4_LOOPBACK, app) as server,
        refused(PairingFault.MESSAGE) as caught,
    ):
        ben.pair(server.address, '4HMA-SW9R', clock=clock, pause=clock.pause)
    assert 'no pairing window; look at the address and the port' in str(caught.value)


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
    with SSLServer(sslctx, IPv4_LOOPBACK, app) as server, refused(PairingFault.MESSAGE):
        ben.pair(server.address, '4HMA-SW9R')


def test_a_certificate_that_ran_out_is_told(ada, ben, open_window, refused) -> None:
    key = ada.identity.read_machine_key()
    old = ada.identity.certify(key.public_key(), NOW - timedelta(days=400))
    ada.identity.install(key, old)
    window = open_window(ada)
    with refused(PairingFault.CERTIFICATE) as caught:
        ben.pair(window.address, window.code)
    assert 'expired' in str(caught.value)
    assert pki.parse_validity(old).not_after < NOW


@pytest.mark.parametrize('fault', PairingFault, ids=lambda fault: fault.value)
def test_each_reason_has_words_of_its_own(fault: PairingFault) -> None:
    assert len(fault.text) > 30
    assert [f for f in PairingFault if f.text == fault.text] == [fault]
