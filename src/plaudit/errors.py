"""The exceptions that are one line for the user: the one they can cause, and the two that end a run.

Everything that a recipe, a file, a model folder or the machine can get wrong is raised as `UserError` with a
message that names the place, the value and the fix. The command line prints it as one line and exits with 2; what a
guard stops, and the loss of another process of the run, are one line too. Any other exception is our bug and keeps its
traceback.
"""


class UserError(ValueError):
    """A mistake in what the user gave us; the message says where it is and how to mend it."""


class RankLost(RuntimeError):
    """Another process of this run has ended or fallen silent; its own message says why."""


class RunStopped(RuntimeError):
    """A run-time guard found a number that must hold and does not; the message names it, its value and its bound."""
