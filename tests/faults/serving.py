"""A process that has everything imported and forks a labelling server for every line it is given, one at a time.

One line on stdin holds the arguments of `plaudit` as JSON; on stdout come the server's process id, what the server
says, and "gone" when it has ended, however it did. Importing takes a second of work and a fork does not.
"""

import gc
import json
import os
import sys

import uvicorn

from plaudit.cli.main import main
from plaudit.label.web import app, serve


def warm() -> None:
    assert all(module is not None for module in (app, serve, uvicorn))
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.argv = ["plaudit", *json.loads(line)]
            print(os.getpid(), flush=True)
            main()
            os._exit(0)
        os.waitpid(child, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    warm()
