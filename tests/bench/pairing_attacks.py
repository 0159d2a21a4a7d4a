"""Attack pairing many times, and count who got in: nobody must.

    python tests/bench/pairing_attacks.py [--middle N] [--codes N] [--windows N] [--processes N]

1. A man in the middle, `--middle` times over real TLS. The joiner connects to him and he to the
   window. He knows and can do everything but the code: what he does is one of STRATEGIES, and after
   it he tries to exchange and to commit all the same.
2. Wrong codes, `--codes` times with the handshake alone and `--windows` times with a real window.
   Half of them differ from the right one in a single bit.
3. A control: the same man in the middle with the code in hand, who must get in each time. If he did
   not, what failed before would prove nothing.

Somebody got in if a handshake confirmed, if a message of a later step was taken or sent, or if
anybody is trusted at the end. The exit status is 1 then, or if the control failed.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import secrets
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from degu import IPv4_LOOPBACK, pki
from degu.client import SSLClient, build_client_sslctx
from degu.errors import DeguError
from degu.server import SSLServer, build_server_sslctx
from degu_rpc import PairingError, PairingWindow, Peering, pair
from degu_rpc.peers import Identity, TrustStore
from degu_rpc.peers.codes import RANDOM_BITS, PairingCode, build_code
from degu_rpc.peers.handshake import Intent, JoinerHandshake, Terms, WindowHandshake
from degu_rpc.peers.limits import PAIRING_WINDOWS_PERIOD_S
from degu_rpc.peers.messages import (
    Answer,
    Confirmation,
    Offer,
    Proof,
    Start,
    format_message,
    parse_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from degu.client import Connection

NOW = datetime.now(UTC)
LATER_STEPS = ('exchange', 'commit', 'acknowledge', 'abort')


@dataclass
class Middle:
    """The man in the middle, during one attempt."""

    machine_id: str
    window_id: str
    to_window: Connection
    code: PairingCode  # his guess
    recorded: dict[str, bytes]  # what the window said in an earlier attempt
    taken: list[str] = field(default_factory=list)  # steps that prove that he got in
    as_window: WindowHandshake | None = None
    as_joiner: JoinerHandshake | None = None
    confirmation: bytes = bytes(32)

    def ask(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Say something to the window."""
        response = self.to_window.post(f'/{path}', None, data)
        answer = b'' if response.body is None else response.body.read()
        if response.status == 200:
            if path != 'start':
                self.taken.append(f'the window took {path}')
            self.recorded[path] = answer
        return response.status, answer

    # What he does about the joiner's first two messages, in any combination.

    def pass_on(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Pass on what was said."""
        return self.ask(path, data)

    def pass_on_as_himself(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Pass it on, but as from his own machine."""
        if path == 'start':
            start = parse_message(data, Start)
            data = format_message(msgspec.structs.replace(start, machine_id=self.machine_id))
        return self.ask(path, data)

    def guess(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Pair with either side himself, with a code that he guessed."""
        if path == 'start':
            self.start_with_window(self.machine_id)
            return 200, self.answer_joiner(data)
        self.ask('confirm', format_message(Confirmation(self.confirmation)))
        assert self.as_window is not None
        theirs = parse_message(data, Confirmation).confirmation
        with contextlib.suppress(PairingError):
            return 200, format_message(Confirmation(self.as_window.confirm(theirs)))
        return 200, format_message(Confirmation(secrets.token_bytes(32)))

    def guess_and_pass_on(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Speak to either side with the guess, and pass their confirmations on to each other."""
        if path == 'start':
            self.start_with_window(parse_message(data, Start).machine_id)
            return 200, self.answer_joiner(data)
        status, answer = self.ask('confirm', data)
        return 200, answer if status == 200 else format_message(Confirmation(bytes(32)))

    def reflect(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Send the joiner its own message back, from the other side; and the same to the window."""
        if path == 'start':
            self.ask('start', data)
            self.ask('confirm', format_message(Confirmation(secrets.token_bytes(32))))
            side = secrets.choice([b'A', b'B'])
            message = side + parse_message(data, Start).message[1:]
            return 200, format_message(Answer(message, 100.0))
        return 200, data

    def replay(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Answer the joiner with what a window said once."""
        self.ask(path, data)
        return 200, self.recorded[path] if path in self.recorded else format_message(
            Confirmation(bytes(32))
        )

    def swap_roles(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Speak to the joiner as another joiner would."""
        if path == 'start':
            self.ask('start', data)
            terms = Terms(Intent.PEER, self.machine_id, parse_message(data, Start).machine_id)
            message = JoinerHandshake(self.code, terms).start()
            return 200, format_message(Answer(message, 100.0))
        return 200, data

    def skip(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Leave the confirmations out."""
        if path == 'start':
            self.start_with_window(self.machine_id)
            self.try_the_rest()
            return 200, self.answer_joiner(data)
        return 200, format_message(Confirmation(secrets.token_bytes(32)))

    # How he does it.

    def start_with_window(self, joiner_id: str) -> None:
        terms = Terms(Intent.PEER, self.window_id, joiner_id)
        self.as_joiner = JoinerHandshake(self.code, terms)
        start = Start(1, Intent.PEER, terms.joiner_id, self.as_joiner.start())
        status, answer = self.ask('start', format_message(start))
        if status == 200:
            self.confirmation = self.as_joiner.confirm(parse_message(answer, Answer).message)

    def answer_joiner(self, data: bytes) -> bytes:
        start = parse_message(data, Start)
        terms = Terms(Intent.PEER, self.machine_id, start.machine_id)
        self.as_window = WindowHandshake(self.code, terms)
        return format_message(Answer(self.as_window.answer(start.message), 100.0))

    def try_the_rest(self) -> None:
        """Go on as if both had confirmed."""
        for _ in range(2):
            self.ask('exchange', format_message(Offer(b'{}', secrets.token_bytes(32))))
        self.ask('commit', format_message(Proof(secrets.token_bytes(32))))


STRATEGIES = (
    Middle.pass_on,
    Middle.pass_on_as_himself,
    Middle.guess,
    Middle.guess_and_pass_on,
    Middle.reflect,
    Middle.replay,
    Middle.swap_roles,
    Middle.skip,
)


class Scene:
    """Ada with her window, Ben who is told the code, and Mallory between them."""

    def __init__(self, directory: Path) -> None:
        self.ada, self.ben, self.mallory = (
            Identity.create(directory / name, NOW) for name in ('ada', 'ben', 'mallory')
        )
        self.trust = {home: TrustStore(home) for home in (self.ada, self.ben)}
        self.windows = 0
        self.recorded: dict[str, bytes] = {}
        pem = pki.format_cert_pem(self.ada.machine_cert).decode()
        self.sslctx = build_client_sslctx({'ca_data': pem, 'check_hostname': False})

    def open_window(self, code: PairingCode) -> PairingWindow:
        """Open a window; each is so much later that there are never too many."""
        self.windows += 1
        now = NOW + self.windows * timedelta(seconds=PAIRING_WINDOWS_PERIOD_S)
        return PairingWindow(Peering(self.ada, self.trust[self.ada], 'Ada', now), code=code)

    def find_trust(self) -> list[str]:
        """Say whether anybody is trusted who was not."""
        return (
            ['somebody is trusted'] if any(len(t.users()) > 1 for t in self.trust.values()) else []
        )

    def join(self, address: Any, code: PairingCode) -> list[str]:
        """Have Ben pair; return what proves that it went too far."""
        try:
            pair(address, code, Peering(self.ben, self.trust[self.ben], 'Ben', NOW))
        except PairingError:
            return []
        return ['the joiner paired']

    def attack(
        self, strategy: Callable[..., tuple[int, bytes]], guess: PairingCode | None
    ) -> list[str]:
        """Put the man in the middle between a window and a joiner; return what he achieved."""
        code = build_code(secrets.randbits(RANDOM_BITS))
        guess = guess or build_code(secrets.randbits(RANDOM_BITS))
        taken: list[str] = []
        with self.open_window(code) as window:
            client = SSLClient(self.sslctx, window.address)
            with client.connect() as to_window:
                middle = Middle(
                    self.mallory.machine_id, self.ada.machine_id, to_window, guess, self.recorded
                )
                taken += self._run(middle, strategy, code)
        return taken + middle.taken + self.find_trust()

    def control(self) -> bool:
        """Let him have the code, and say whether he gets in."""
        code = build_code(secrets.randbits(RANDOM_BITS))
        with self.open_window(code) as window:
            client = SSLClient(self.sslctx, window.address)
            with client.connect() as to_window:
                middle = Middle(self.mallory.machine_id, self.ada.machine_id, to_window, code, {})
                taken = self._run(middle, Middle.guess, code)
        return 'the joiner sent exchange' in taken and 'the window took confirm' in middle.taken

    def _run(self, middle: Middle, strategy: Callable[..., Any], code: PairingCode) -> list[str]:
        taken = []

        def app(connection: Any, request: Any) -> Any:
            path, data = '/'.join(request['path']), request['body'].read()
            if path in LATER_STEPS:
                taken.append(f'the joiner sent {path}')
                status, answer = middle.ask(path, data)
            else:
                status, answer = strategy(middle, path, data)
            return status, 'Whatever', {}, answer

        file = str(self.mallory.machine_file)
        config = {'cert_file': file, 'key_file': file, 'allow_unauthenticated_clients': True}
        with SSLServer(build_server_sslctx(config), IPv4_LOOPBACK, app) as server:
            taken += self.join(server.address, code)
            with contextlib.suppress(DeguError, OSError):
                middle.try_the_rest()
        return taken

    def try_wrong_code(self, number: int) -> list[str]:
        """Have Ben pair with a wrong code."""
        right, wrong = draw_codes(number)
        with self.open_window(right) as window:
            return self.join(window.address, wrong) + self.find_trust()


def draw_codes(number: int) -> tuple[PairingCode, PairingCode]:
    """Draw a code, and another that differs from it in one bit for each second number."""
    bits = secrets.randbits(RANDOM_BITS)
    if number % 2:
        return build_code(bits), build_code(bits ^ 1 << secrets.randbelow(RANDOM_BITS))
    return build_code(bits), build_code(bits ^ 1 + secrets.randbelow(2**RANDOM_BITS - 1))


def try_handshake(number: int) -> list[str]:
    """Run the handshake alone with a wrong code."""
    right, wrong = draw_codes(number)
    terms = Terms(Intent.PEER, 'w' * 48, 'j' * 48)
    joiner, window = JoinerHandshake(wrong, terms), WindowHandshake(right, terms)
    confirmation = joiner.confirm(window.answer(joiner.start()))
    try:
        window.confirm(confirmation)
    except PairingError:
        return []
    return ['the window confirmed']


def work(kind: str, numbers: range) -> Counter[str]:
    """Do a share of the attempts in this process; count what was done and who got in."""
    counted: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix='degu-pairing-') as directory:
        scene = Scene(Path(directory))
        for number in numbers:
            taken: list[str] = []
            name = kind
            if kind == 'middle':
                strategy = STRATEGIES[number % len(STRATEGIES)]
                name = f'{kind}: {strategy.__name__}'
                taken = scene.attack(strategy, None)
            elif kind == 'control':
                taken = [] if scene.control() else ['he could not get in with the code']
            elif kind == 'windows':
                taken = scene.try_wrong_code(number)
            else:
                taken = try_handshake(number)
            counted[name] += 1
            for achieved in set(taken):
                counted[f'FAILED {name}: {achieved}'] += 1
    return counted


def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--middle', type=int, default=1000, metavar='N')
    parser.add_argument('--codes', type=int, default=10000, metavar='N')
    parser.add_argument('--windows', type=int, default=200, metavar='N')
    parser.add_argument('--controls', type=int, default=20, metavar='N')
    parser.add_argument('--processes', type=int, default=2, metavar='N')
    options = parser.parse_args()
    wanted = {
        'middle': options.middle,
        'codes': options.codes,
        'windows': options.windows,
        'control': options.controls,
    }
    started = time.monotonic()
    counted: Counter[str] = Counter()
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(options.processes, context) as pool:
        shares = [
            pool.submit(work, kind, range(first, count, options.processes))
            for kind, count in wanted.items()
            for first in range(options.processes)
        ]
        for share in shares:
            counted += share.result()
    for name, count in sorted(counted.items()):
        print(f'{count:6}  {name}')
    failed = sum(count for name, count in counted.items() if name.startswith('FAILED'))
    done = sum(count for name, count in counted.items() if not name.startswith('FAILED'))
    print(f'{done} attempts in {time.monotonic() - started:.0f} s, {failed} not as they must be')
    return 1 if failed or done != sum(wanted.values()) else 0


if __name__ == '__main__':
    sys.exit(main())
