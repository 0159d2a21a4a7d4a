"""A service for programs of this machine, over a unix socket, and a client of it.

    python examples/quick_unix.py $XDG_RUNTIME_DIR/hello.sock        # serves until it is ended
    python examples/quick_unix.py $XDG_RUNTIME_DIR/hello.sock Ada    # calls

The kernel says who calls: this user alone has the role `owner`.
"""

import sys

from degu.server import Server
from degu_rpc import Authenticated, Context, RpcApp, Service, connect, listen_unix

hello = Service('hello.v1.Hello')


@hello.method(allow='owner', safe=True)
def greet(ctx: Context, name: str) -> str:
    """Greet by name, and say who asked."""
    return f'hello {name}, asked by {ctx.peer.name}'


if len(sys.argv) == 2:
    Server(listen_unix(sys.argv[1]), Authenticated(RpcApp([hello]))).serve_forever()
with connect(f'unix:{sys.argv[1]}', prefix='') as client:
    print(client['hello.v1.Hello'].greet(name=sys.argv[2]))
