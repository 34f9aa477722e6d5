"""Everything about models that is there for speed alone; each is probed against the plain way before it is used."""
