"""The one table of limits of the RPC wing."""

MAX_MESSAGE_SIZE = 4 * 1024 * 1024
"""Bytes of one message, either way."""
MAX_NESTING = 64
"""Arrays and maps inside each other."""
MAX_VALUES = 100_000
"""Values in one message, with arrays, maps and keys. 4 MiB of empty maps would become 360 MiB."""
MAX_FAULTS = 16
"""Faults that one error tells of ..."""
MAX_FAULT_LENGTH = 200
"""... and characters of each of their two parts."""
MAX_CONNECTIONS = 8
"""Connections that one client has at once; a further call waits for one of them."""
IDLE_TIMEOUT_S = 20.0
"""How long a client keeps an idle connection: less than the 30 s that a server does."""
MAX_BATCH = 50
"""Requests in one batch of JSON-RPC."""
