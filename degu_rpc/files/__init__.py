"""Move files between machines: a share to read from, and a fetch that verifies and resumes."""

from degu_rpc.files.browse import Listed, list_share
from degu_rpc.files.fetch import Fetched, Mirror, fetch
from degu_rpc.files.listing import Problem
from degu_rpc.files.plan import Skipped
from degu_rpc.files.progress import Progress
from degu_rpc.files.share import FileShare

__all__ = [
    'Fetched',
    'FileShare',
    'Listed',
    'Mirror',
    'Problem',
    'Progress',
    'Skipped',
    'fetch',
    'list_share',
]
