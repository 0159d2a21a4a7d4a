"""Folders that several machines keep equal, both ways.

    versions.py    version vectors: which change has seen which
    resolve.py     one path: what of that which several machines have is to stay

Both are pure: no file, no clock, no network.
"""
