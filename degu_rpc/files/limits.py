"""The one table of limits of the files wing. What belongs to the format is in blocks.py."""

# --- what a peer may make us take ---

MAX_NAME = 255
"""Bytes in a name: what Linux file systems hold."""
MAX_DEPTH = 256
"""Names in a path."""
MAX_TARGET = 4095
"""Bytes in the text of a symlink: what Linux holds."""
MAX_PATH_TEXT = 7 * 1024
"""Characters of a percent-encoded path: what fits in a request line, with room for a prefix."""
MAX_RECORD = 64 * 1024
"""Bytes of one record: room for a path and a symlink target of 4096 bytes, all percent-encoded."""
MAX_FIELDS = 256
"""Fields of one record."""
MAX_XATTRS = 16 * 1024
"""Bytes of the extended attributes of a file, names and values: what fits in a record."""
MAX_XATTR_NAME = 250
"""Bytes in the name of one, without `user.`: what Linux holds."""
MAX_ENTRIES = 1_000_000
"""Entries in a listing, what was skipped included; about 1 KiB of memory each."""
MAX_LISTING_TEXT = 512 * 1024 * 1024
"""Bytes of text in a listing: paths, symlink targets and roots, and NAME_COST for each name ..."""
NAME_COST = 32
"""... because that is what a name takes besides its text, at least."""
MAX_MANIFEST = 64 * 1024 * 1024
"""Bytes of a manifest: a file of 32 TiB."""
MAX_ERROR_TEXT = 4 * 1024
"""Bytes of an error's explanation that are read; a longer one costs the connection."""

# --- a pack: many small files in one answer ---

PACK_ITEMS = 1024
"""Files in a pack."""
PACK_SIZE = 8 * 1024 * 1024
"""Bytes of content in a pack, after which it takes no more."""
MAX_PACKED = 256 * 1024
"""Bytes of one record of it: a small file in base64, with what is said of it."""
MAX_PACK_REQUEST = 1024 * 1024
"""Bytes of the question."""

# --- a share ---

MAX_REMEMBERED = 64 * 1024 * 1024
"""Bytes of manifests that are remembered, each with 512 more for its path and tables."""
CHUNK_SIZE = 64 * 1024
"""Bytes of a listing that are sent at once ..."""
HEARTBEAT_S = 2.0
"""... and how long it says nothing."""
HASH_ATTEMPTS = 3
"""How often a file that changes while it is hashed is hashed, the first time included."""
MAX_HASHING = 4
"""Large files that a share hashes at once, whoever asks; further ones wait for their turn."""
MAX_CUTTING = 2
"""Files that are cut at once for /cuts; who comes then fetches the whole file, or waits ..."""
CUT_RETRY_S = 5
"""... and is told to wait this long."""

# --- a fetch ---

CONNECTIONS = 2
"""Connections to each source."""
RUN_SIZE = 16 * 1024 * 1024
"""Bytes of a large file that go over one connection at once, both ways."""
END_GAME_S = 2.0
"""How long a source is at a run at least before one that has nothing else to do brings it, too."""
FETCH_ATTEMPTS = 3
"""How often a file that changes at the source is begun, the first time included."""
NOTE_SIZE = 256 * 1024 * 1024
NOTE_INTERVAL_S = 5.0
"""After how many bytes or seconds the blocks that arrived are made durable, and noted."""
TEMPORARY_AGE_S = 30 * 24 * 3600.0
"""How long what was begun is kept that nobody goes on with."""
TRASH_AGE_S = 30 * 24 * 3600.0
"""How long what was displaced stays in the trash."""
EXCHANGE_ATTEMPTS = 16
"""How often a name may appear and vanish under our hands before we give up."""
MAX_MACHINE = 64
"""Bytes of a machine's name in the name of a conflict copy."""
DELTA_SIZE = 4 * 1024 * 1024
"""Bytes that have to be missing before it is worth while to look where an old version has them."""
MAX_OLD_RATIO = 4
"""How many times the size of a new version is read of the old one, to see what both have."""
COPY_SIZE = 16 * 1024 * 1024
"""Bytes that are copied from an old version between two looks at whether to stop."""
BATCH_FILES = 128
"""Files that are made durable and renamed together; each keeps a descriptor open until then ..."""
BATCH_SIZE = 64 * 1024 * 1024
"""... or so many bytes of them, whichever comes first."""
KEEP_FREE = 512 * 1024 * 1024
KEEP_FREE_FRACTION = 100
"""What is left free on the disk: the smaller of KEEP_FREE bytes and 1/100 of it."""
RESERVATION_STEP = 4 * 1024 * 1024
"""Bytes that a transfer writes before it tells others that it needs less room."""
PROGRESS_INTERVAL_S = 0.1
"""How long `progress` is not called again, and a cancel may wait."""
RATE_WINDOW_S = 5.0
"""How far back the rate looks that `progress` tells."""
MAX_PIECE = 1024 * 1024
MIN_PIECE = 16 * 1024
"""Bytes that are moved at once, the smaller with a low rate limit."""

# --- an inbox ---

MAX_OFFER_ENTRIES = 200_000
"""Files, directories and symlinks in an offer; about 1 KiB of memory each while it comes in."""
MAX_OFFER_NAMES = 1000
"""Names at the top of an offer; they are remembered."""
MAX_OFFER_TEXT = 64 * 1024 * 1024
"""Bytes of text in an offer, counted as in a listing."""
MAX_OFFER_SIZE = 2**50
"""Bytes of all files in an offer."""
MAX_WAITING = 64
MAX_WAITING_OF_USER = 8
"""Offers that wait for an answer, in all and of one user; a further one is refused."""
MAX_OFFERS_OF_USER = 32
"""Other offers of one user that are remembered; the one that rested longest goes first."""
OFFER_AGE_S = 30 * 24 * 3600.0
"""How long an offer is remembered in which nothing happens."""
MAX_ACTIVE_OF_USER = 4
"""Accepted offers of one user that are in memory; for others the sender begins by offering."""
MAX_REST_S = 600.0
"""How long nothing comes for them until the next offer, of whomever, lets them go, with the room
that is reserved for them. Without another offer they stay."""
MAX_READ_OFFERS = 8
MAX_READ_OFFERS_OF_USER = 2
"""Offers that are read at once, in all and of one user; a further one has to come again."""
MAX_READ_OFFER_S = 120.0
"""How long an offer may take to be read; then its connection is closed ..."""
OFFER_GRACE_S = 10.0
MIN_OFFER_RATE = 16 * 1024
"""... and so it is where after OFFER_GRACE_S fewer bytes a second came."""
MAX_QUESTION_HEARTBEATS = 16
"""Records that say nothing in what is sent to an inbox: they are for its answers."""
MAX_OPEN_CONTENTS = 4
"""Large contents of an offer that are open at once; the one that rested longest is closed."""
MAX_MISSING_RANGES = 64
"""Ranges of missing bytes in one answer."""
MAX_WAIT_S = 60.0
"""How long a question for the state of an offer may wait for it to change."""

# --- sending ---

SENT_PACK_SIZE = 1024 * 1024
"""Bytes of a pack that is sent; so much is to be sent again when a connection breaks."""
SEND_ROUNDS = 8
"""How often in a row an inbox may say that it wants more, without anything that came right."""
POLL_S = 25.0
"""How long a sender asks an inbox to wait for the answer of a person before it asks again."""
BUSY_ATTEMPTS = 30
BUSY_PAUSE_S = 1.0
"""How often, and after which pause, an offer is made again to an inbox that is busy."""
