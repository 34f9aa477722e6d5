"""The one exception a user can cause.

Everything that a recipe, a file, a model folder or the machine can get wrong is raised as `UserError` with a
message that names the place, the value and the fix. The command line prints it as one line and exits with 2;
any other exception is our bug and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user gave us; the message says where it is and how to mend it."""


class RunStopped(RuntimeError):
    """A run-time guard found a number that must hold and does not; the message names it, its value and its bound."""
