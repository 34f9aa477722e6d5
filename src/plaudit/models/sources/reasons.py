"""What a library could not do, as one sentence with the library's own reason."""

import contextlib
import logging
import re
from collections.abc import Iterator

from huggingface_hub.errors import HFValidationError

from plaudit.errors import UserError

_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@contextlib.contextmanager
def refusing(what: str, fix: str = "") -> Iterator[None]:
    """Whatever a library raises here is a UserError: `what`, the library's reason in one line, `fix`."""
    with _reports() as reports:
        try:
            yield
        except Exception as error:
            reason = "not a valid Hub id" if isinstance(error, HFValidationError) else " ".join(str(error).split())
            if reports and "above report" in reason:
                reason = reports[-1]
            raise UserError(f"{what} ({type(error).__name__}: {reason[:300]}){fix}") from error


@contextlib.contextmanager
def _reports() -> Iterator[list[str]]:
    """The tables of weights that do not fit, which transformers writes to its log and refers to in what it raises."""
    found: list[str] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "LOAD REPORT" in (text := record.getMessage()):
                lines = (" ".join(line.split()) for line in _COLOURS.sub("", text).splitlines())
                # Without its legend; its order is a set's, which is another one in every process.
                found.append("; ".join(sorted(line for line in lines if re.search(r"\| (MISMATCH|CONVERSION)", line))))

    logger, handler = logging.getLogger("transformers.modeling_utils"), Keeps(logging.WARNING)
    before, passed_on = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False  # whoever silenced it wants to see no table
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = passed_on
