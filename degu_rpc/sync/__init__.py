"""Folders that several machines keep equal, both ways.

    versions.py    version vectors: which change has seen which
    resolve.py     one path: what of that which several machines have is to stay
    plan.py        the tree: what to do about that, in which order
    index.py       the database: what each machine has

The first three are pure: no file, no clock, no network.
"""
