"""CALL: methods declared with a decorator, called over HTTP. Uses `peers`, knows no other wing."""
