"""Every alarm of a run is on the report's list."""

from plaudit.stages.ppo.config import PPOConfig
from plaudit.view.report.care import raised_alarms

SETTINGS = PPOConfig().model_dump(mode="json")
CARD = {
    "alarms": [
        {"kind": "swapped", "level": "alarm", "says": "Worse than a coin.", "do": "Look at the sign."},
        {"kind": "few pairs", "level": "warning", "says": "Few.", "do": "Hold out more."},
    ]
}


def test_a_run_without_alarms_has_none() -> None:
    assert raised_alarms((None, None), {"preferences": {"finished_share": 0.95}}, [], [], SETTINGS) == []


def test_alarms_of_the_card_the_doctor_and_cut_replies() -> None:
    rows = [
        {"update": n, "kl": 90.0 + n, "entropy": 2.0, "length": 20.0, "eos": 0.9, "score": 0.1} for n in range(1, 6)
    ]
    card, runaway, cut = raised_alarms((CARD, None), {"preferences": {"finished_share": 0.7}}, rows, [], SETTINGS)
    assert card == "Reward model: Worse than a coin. Look at the sign."
    assert runaway.startswith("PPO: KL runaway: ") and "raise ppo.kl_coef" in runaway
    assert cut.startswith("30.0\u00a0% of the ranked replies were cut by the length limit")
