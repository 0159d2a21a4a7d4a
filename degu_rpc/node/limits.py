"""The one table of limits of the node."""

DEFAULT_PORT = 8485
"""The TCP port on which a node takes other machines; the next one is for pairing."""
MAX_PORT = 65535
"""The last port of TCP."""
SHUTDOWN_S = 5.0
"""How long running requests have when a node stops."""
STOP_S = SHUTDOWN_S + 10.0
"""How long all of a node has to stop; the rest is for what it renews and its word to others."""
UPKEEP_PERIOD_S = 60.0
"""How often a node looks after its certificate and after what did not work before."""
TRUST_PERIOD_S = 0.5
"""How often a node looks for open connections of machines that it trusts no more, and ends them."""
STATUS_PERIOD_S = 0.5
"""How often a watched status is compared with the one before."""
CALLER_PERIOD_S = 0.1
"""How often a call that waits for a person looks whether its caller is still there."""
NEARBY_S = 3.0
"""How long the network is given to say who is there, unless told otherwise."""
SILENCE_LOG_S = 10.0
"""How often the log says of one program behind the node that it does not answer."""
MAX_SERVED = 64
"""Programs that serve something behind the node at once."""
MAX_CONFIG_SIZE = 64 * 1024
"""Bytes of a configuration file."""
MAX_SHOWN_NAMES = 16
"""Names of one offer that programs are told, of the thousands that there may be."""
SYSTEMCTL_S = 60.0
"""How long systemd has to do what it is told, the start of a node included."""
EXAMINE_S = 5.0
"""How long `degu doctor` waits for the node and for each other machine, unless told otherwise."""
EXAMINE_THREADS = 32
"""How many machines it looks at beside each other."""
CLOCK_SLACK_S = 300.0
"""How far in the future a file of the home may be before the clock is said to be wrong."""
MIN_FREE_SIZE = 64 * 1024 * 1024
"""Bytes that should be free where the home is."""
EXPIRES_SOON_S = 30 * 86400.0
"""How long before the end of its certificate a machine is warned."""
