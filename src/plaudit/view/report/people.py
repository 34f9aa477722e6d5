"""What people said of SFT against PPO, for the report: the blind comparisons that `plaudit label compare` put up."""

from pathlib import Path
from typing import Any

from plaudit.run.folder import read_recipe
from plaudit.train.run import Run


def compared_by_people(run: Run) -> dict[str, Any] | None:
    """How often people ranked PPO's reply above SFT's, ties half, with the 95 % interval over prompts.

    None where nobody compared. Only replies of the evaluation as it is now count: what was said of an older policy
    stays in the database.
    """
    where = read_recipe(run.folder.path)["preferences"]["database"] or str(run.folder.path / "label" / "labels.sqlite")
    if "://" not in where and not Path(where).is_file():
        return None
    # Here, because it needs the extra `label`, which a run without people does not.
    from plaudit.label.db.database import connect, snapshot
    from plaudit.label.db.ledger import read, standing
    from plaudit.label.quality.agreement import ranked
    from plaudit.label.quality.sources import win_rate
    from plaudit.label.queue.items import compared

    now = {draft.id for draft in compared(run.folder.path, run.prompts)[0]}
    engine = connect(where)
    with snapshot(engine) as connection:
        ledger = read(connection)
    engine.dispose()
    labels = [label for label in ranked(standing(ledger.labels)) if label.item in now]
    return win_rate(ledger.items, labels, "ppo", "sft")
