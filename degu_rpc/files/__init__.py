"""Move files between machines: shares to fetch from, inboxes to send to; verified, resumable."""

from degu_rpc.files.browse import Listed, list_share
from degu_rpc.files.fetch import Fetched, Mirror, fetch
from degu_rpc.files.inbox import Inbox
from degu_rpc.files.listing import Kind, Problem
from degu_rpc.files.offers import Decision, Offer, State
from degu_rpc.files.plan import Skipped
from degu_rpc.files.progress import Progress
from degu_rpc.files.send import Sent, send
from degu_rpc.files.share import FileShare

__all__ = [
    'Decision',
    'Fetched',
    'FileShare',
    'Inbox',
    'Kind',
    'Listed',
    'Mirror',
    'Offer',
    'Problem',
    'Progress',
    'Sent',
    'Skipped',
    'State',
    'fetch',
    'list_share',
    'send',
]
