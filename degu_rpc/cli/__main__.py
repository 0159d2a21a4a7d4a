"""`python -m degu_rpc.cli` is the command `degu`."""

from degu_rpc.cli import main

main()
