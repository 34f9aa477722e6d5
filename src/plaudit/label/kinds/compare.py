"""The task `compare`: two sources answer one prompt, and people say blindly which reply is better.

Answers and page are those of a ranking of two; the labels are exported apart, since they compare and do not train.
"""

from collections.abc import Sequence

from plaudit.label.kinds.rank import judgement, sent_of, shown_replies
from plaudit.label.kinds.shared import Body, Kind


def _body(order: Sequence[int], flags: Sequence[str], sent: Body) -> Body:
    return judgement("compare", order, flags, sent)


COMPARE = Kind("compare", _body, sent_of, shown_replies, ("comparisons",))
