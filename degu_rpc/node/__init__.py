"""A running device: identity, listeners, discovery, services and shares, in one place."""
