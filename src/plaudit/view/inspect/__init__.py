"""One reply, token by token."""
