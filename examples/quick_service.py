"""A service on a node of its own, for paired machines and for programs of this one.

    python examples/quick_service.py                  # in place of `degu up`
    degu call . hello.v1.Hello/greet name=Ada         # on this machine
    degu call studio hello.v1.Hello/greet name=Ada    # on one that is paired with it

It has the home and the settings of this user, and ends with Ctrl-C or `degu down`.
"""

from degu_rpc import Context, Node, Service

hello = Service('hello.v1.Hello')


@hello.method(allow='peer', safe=True)
def greet(ctx: Context, name: str) -> str:
    """Greet by name, and say who asked."""
    return f'hello {name}, asked by {ctx.peer.name}'


with Node(services=[hello]) as node:
    node.wait()
