"""The task `compare`: two sources answer one prompt, and people say blindly which reply is better.

Answers and page are those of a ranking of two; the labels are exported apart, since they compare and do not train.
"""

from functools import partial

from plaudit.label.kinds.rank import judgement, sent_of, shown_replies
from plaudit.label.kinds.shared import Kind

COMPARE = Kind("compare", partial(judgement, "compare"), sent_of, shown_replies, ("comparisons",))
