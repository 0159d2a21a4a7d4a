"""The one table of limits of the RPC wing."""

MAX_MESSAGE_SIZE = 4 * 1024 * 1024
"""Bytes of one message, either way."""
MAX_QUERY_FIELDS = 32
"""Fields in the query of a call that is a GET."""
MAX_ERROR_SIZE = 1024 * 1024
"""Bytes of one error as JSON; a larger one is not sent, but logged and replaced."""
MAX_NESTING = 64
"""Arrays and maps inside each other."""
MAX_VALUES = 100_000
"""Values in one message, with arrays, maps and keys. 4 MiB of empty maps would become 360 MiB."""
MAX_FAULTS = 16
"""Faults that one error tells of ..."""
MAX_FAULT_LENGTH = 200
"""... and characters of each of their two parts."""
MAX_ERROR_LENGTH = 4000
"""Characters of an error's message that travel; the rest is cut off."""
MAX_ERROR_SIZE = 64 * 1024
"""Bytes of an error with its details. A method's larger one is replaced by an internal error."""
MAX_LINE_LENGTH = 1000
"""Characters of a line that tells of a difference between a stub and a service."""
MAX_CONNECTIONS = 8
"""Connections that one client has at once; a further call waits for one of them."""
IDLE_TIMEOUT_S = 20.0
"""How long a client keeps an idle connection: less than the 30 s that a server does."""
MAX_BATCH = 50
"""Requests in one batch of JSON-RPC."""
MAX_DESCRIPTIONS = 256
"""Descriptions of services that are kept, each for callers with the same roles."""
MAX_TIMEOUT_S = 86_400.0
"""The longest that a server lets a call take whose caller names a time, however long that is."""
MAX_TIMEOUT_DIGITS = 10
"""Digits of the time that a caller names. Source: Connect protocol, Timeout-Milliseconds."""
DEFAULT_TIMEOUT_S = 30.0
"""How long a client lets a call take that has no stream, unless it is told otherwise."""
LOOK_INTERVAL_S = 0.1
"""How often a running call looks whether its client is still there, at most."""
END_TIMEOUT_S = 5.0
"""How long the end of a stream may take to be sent once its deadline is over."""
MAX_HELD_SIZE = 4 * 1024 * 1024
"""Bytes of results that a server holds back while it still reads the caller's stream."""
HELD_PIECE_SIZE = 64 * 1024
"""Bytes of them that are sent as one chunk."""
MAX_DROPPED_SIZE = 16 * 1024 * 1024
"""Bytes of a caller's stream that a server reads and drops after the end of the call: as much as
may be on its way, so that the caller can read how the call ended."""
MAX_REQUEST_ID_LENGTH = 128
"""Characters of a request id; a longer one is replaced."""
MAX_RESPONSE_HEADERS = 16
"""Headers that a method may send with its result: half of what a client takes."""
MAX_RESPONSE_HEADER_SIZE = 1024
"""Bytes of one of them, name and value; all together are half of what a client takes."""
MIN_COMPRESSED_SIZE = 1024
"""A smaller message is never compressed."""
MAX_ATTEMPTS = 5
"""How often a client tries a call that it may repeat."""
BACKOFF_S = 0.05
"""The longest pause before the second attempt; each further one is twice as long."""
LOOK_AFTER_S = 0.05
"""How long a connection may be idle before a client looks, ahead of a call, if it is still open."""
MAX_KEY_LENGTH = 128
"""Characters of an idempotency key."""
MAX_REPLAY_SIZE = 16 * 1024 * 1024
"""Bytes of outcomes that a server keeps for calls that are made again."""
REPLAY_COST = 1024
"""Bytes that an outcome counts besides its result."""
REPLAY_AGE_S = 600.0
"""How long an outcome is kept at most."""
