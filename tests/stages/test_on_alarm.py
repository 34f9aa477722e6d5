"""reward.on_alarm: an alarm of the report card is told, or it stops the run."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plaudit.errors import RunStopped
from plaudit.stages.reward.loop import stop_for_alarm

ALARM = {"kind": "swapped", "level": "alarm", "says": "Worse than a coin.", "do": "Look at the sign."}
WARNING = {**ALARM, "kind": "few pairs", "level": "warning"}


def test_an_alarm_stops_where_it_is_asked_to() -> None:
    with pytest.raises(RunStopped, match=r"alarm 'swapped': Worse than a coin. Look .*--resume reward.on_alarm=warn"):
        stop_for_alarm("stop", [{"alarms": [WARNING]}, {"alarms": [WARNING, ALARM]}])
    stop_for_alarm("warn", [{"alarms": [ALARM]}])
    stop_for_alarm("stop", [{"alarms": [WARNING]}])


def test_a_run_stops_and_goes_on(
    trained: Path,
    plaudit: Callable[..., SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    def card(*arguments: Any, **options: Any) -> Any:
        summary, found = held_out_card(*arguments, **options)
        return summary, {**found, "alarms": [ALARM]}

    from plaudit.stages.reward import loop

    held_out_card = loop.held_out_card
    monkeypatch.setattr(loop, "held_out_card", card)
    run = ["run", trained.parent / "recipe.yaml", f"folder={tmp_path / 'run'}"]
    stopped = plaudit(*run, "--copy-from", trained, "--from", "reward", "reward.on_alarm=stop", "reward.epochs=1")
    assert stopped.code == 3 and "the alarm 'swapped'" in stopped.err
    assert not (tmp_path / "run/ppo").exists()
    monkeypatch.setattr("plaudit.stages.pipeline.ppo.train", lambda *_: (_ for _ in ()).throw(RunStopped("PPO began")))
    went_on = plaudit(*run, "--resume", "reward.on_alarm=warn", "reward.epochs=1")
    assert "PPO began" in went_on.err, went_on.err
