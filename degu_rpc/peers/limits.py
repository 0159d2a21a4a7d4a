"""The one table of limits of the peers wing."""

MAX_USERS = 1000
"""Users that one machine trusts."""
MAX_MACHINES = 1000
"""Machines of one user that are known by name."""
MAX_DENIED = 1000
"""Machines of one user that are denied."""
MAX_NAME_LENGTH = 64
"""Characters of the name that we give a user."""
MAX_ROLES = 32
"""Roles of one user."""
MAX_RECORD_SIZE = 512 * 1024
"""Bytes of the file about one user."""
MIN_PASSPHRASE_LENGTH = 12
"""Characters of the passphrase of an exported user."""
ROTATION_PERIOD_S = 86400.0
"""How soon a machine may change its key again."""
MAX_CERTIFICATE_SIZE = 8192
"""Bytes of a certificate or of the request for one."""

PAIRING_WINDOW_S = 120.0
"""How long a pairing window is open ..."""
MAX_PAIRING_WINDOWS = 3
"""... how many are opened ..."""
PAIRING_WINDOWS_PERIOD_S = 600.0
"""... in how much time."""
MAX_PAIRING_CONNECTIONS = 4
"""Connections to a pairing window at once."""
MAX_PAIRING_CONNECTIONS_PER_ADDRESS = 2
"""Connections to a pairing window at once from one IP address."""
PAIRING_SILENCE_S = 2.0
"""How long a connection to a pairing window may be silent before it is closed."""
PAIRING_CONNECT_S = 5.0
"""For how long a connection to a pairing window is tried again."""
MAX_PAIRING_BODY = 4096
"""Bytes of one message of a pairing."""
PAIRING_STEP_TIMEOUT_S = 10.0
"""How long one side of a pairing waits for the other at each step."""
PAIRING_REPEAT_S = 0.5
"""How soon the last message of a pairing is sent again if it has no answer."""

MAX_ADDRESSES = 8
"""Addresses of one machine that are announced and told, and tried in one connect."""
MAX_CANDIDATES = 32
"""Addresses of one machine that are remembered, because some may be false."""
MAX_UNKNOWN_SIGHTINGS = 64
"""Machines we do not know that are remembered as seen."""
RETRY_ADDRESS_S = 10.0
"""How soon one address of one machine is tried again."""
SIGHTING_S = 120.0
"""How long a sighting counts that is not repeated, at most."""
ASK_AGAIN_S = 80.0
"""How often the network is asked who is there, once it was asked a few times."""
MAX_QUESTIONS = 64
"""Questions about single machines and hosts that other machines can make us ask in a second."""
FIND_S = 3.0
"""How long mDNS and DNS have to say where a machine is."""
DIAL_S = 15.0
"""How long it may take to find and reach a machine, unless told otherwise."""
CONNECT_S = 3.0
"""How long one address of a machine has to take a connection, TLS included."""
STAGGER_S = 0.25
"""How long one address is waited for before the next is tried beside it (RFC 8305 §5)."""
MAX_PORTS = 2
"""Ports of one host that are tried for one machine in one connect, where they are hints."""
MAX_PAUSES = 64
"""Addresses of one machine that failed and are not tried again yet."""
PROBE_S = 0.5
"""How long we listen for our own question when nothing was found."""
