"""The lesson in Chromium, from a file and without a network: sliders are moved, and numbers must be plaudit.algo's."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from label_page import DESKTOP, PHONE, watched

from plaudit.algo.advantages import gae
from plaudit.algo.losses import clipped_surrogate, value_error
from plaudit.algo.masked import whiten
from plaudit.algo.preferences import bradley_terry_loss
from plaudit.algo.rewards import kl_estimate, token_rewards
from plaudit.view.lesson.write import lesson_page

EXACT = 1e-6
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lesson") / "lesson.html"
    path.write_text(lesson_page(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def desk(browser: Any, file: Path) -> Iterator[Any]:
    context = browser.new_context(**DESKTOP, offline=True)
    page = watched(context.new_page())
    page.goto(file.as_uri())
    yield page
    context.close()
    assert page.complaints == []


def move(page: Any, place: str, **values: float) -> None:
    for key, value in values.items():
        page.locator(f"#{place}-{key}").evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input', { bubbles: true })); }", value
        )


def number(page: Any, name: str) -> float:
    return float(page.locator(f"#{name}").get_attribute("data-value"))


def row(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_the_first_screen_is_the_worked_example(desk: Any) -> None:
    shown = {name: number(desk, name) for name in ("advantage", "ratio", "unclipped", "clipped", "l_clip")}
    by_hand = {"advantage": 3.5, "ratio": 1.25, "unclipped": 4.375, "clipped": 4.2, "l_clip": 4.2}
    assert shown == pytest.approx(by_hand, abs=EXACT)
    assert desk.locator("#cross-all.biting").count() == 1


@pytest.mark.parametrize(
    ("reward", "old", "now", "epsilon"),
    [(5, 0.6, 0.75, 0.2), (-2, 0.5, 0.3, 0.2), (-2, 0.3, 0.6, 0.1), (4, 0.5, 0.5, 0.4)],
)
def test_the_clip_is_the_librarys(desk: Any, reward: float, old: float, now: float, epsilon: float) -> None:
    move(desk, "cross", reward=reward, old=old, now=now, range=epsilon, value=1.5, next=0)
    advantage, ratio = row([reward - 1.5]), row([now / old])
    expected = clipped_surrogate(ratio, advantage, epsilon)
    assert number(desk, "l_clip") == pytest.approx(expected.item(), abs=EXACT)
    assert (desk.locator("#cross-all.biting").count() == 1) == bool((expected != ratio * advantage).item())


@pytest.mark.parametrize(("lam", "gamma", "beta"), [(0, 1, 0), (1, 1, 0.5), (0.95, 0.9, 0.05)])
def test_gae_and_rewards_are_the_librarys_on_every_reply(desk: Any, lam: float, gamma: float, beta: float) -> None:
    replies = json.loads(desk.locator("#data").text_content())["replies"]
    move(desk, "gae", lam=lam, gamma=gamma)
    move(desk, "kl", beta=beta)
    for index, reply in enumerate(replies):
        desk.select_option("#reply", str(index))
        kl_BT, values_BT = row(reply["kl"]), row(reply["values"])
        mask_BT = torch.ones_like(kl_BT, dtype=torch.bool)
        rewards_BT = token_rewards(torch.tensor([reply["score"]], dtype=torch.float64), kl_BT, mask_BT, beta)
        advantages_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=lam)
        for name, expected in (("gae-first", advantages_BT), ("kl-total", rewards_BT)):
            shown = json.loads(desk.locator(f"#{name}").get_attribute("data-all"))
            assert shown == pytest.approx(expected[0].tolist(), abs=EXACT)


@pytest.mark.parametrize(("p", "q"), [(0.6, 0.4), (0.05, 0.9), (0.5, 0.5)])
def test_the_three_estimates_of_the_kl_are_the_librarys(desk: Any, p: float, q: float) -> None:
    move(desk, "klk", p=p, q=q)
    for name in ("k1", "k2", "k3"):
        expected = kl_estimate(row([math.log(p)]), row([math.log(q)]), name)
        assert number(desk, name) == pytest.approx(expected.item(), abs=EXACT)


def test_the_objective_and_the_entropy_are_the_librarys(desk: Any) -> None:
    move(desk, "obj", l_clip=2, value=1, target=4, entropy=1.5, c1=0.25, c2=0.01)
    l_vf = value_error(row([1]), row([4])).item()
    assert number(desk, "l_vf") == pytest.approx(l_vf, abs=EXACT)
    assert number(desk, "loss") == pytest.approx(-(2 - 0.25 * l_vf + 0.01 * 1.5), abs=EXACT)
    move(desk, "ent", a=2.5, b=-1, c=0.5, temperature=0.7)
    law = torch.distributions.Categorical(logits=torch.tensor([2.5, -1, 0.5], dtype=torch.float64) / 0.7)
    assert number(desk, "entropy") == pytest.approx(law.entropy().item(), abs=EXACT)


def test_whitening_is_the_librarys(desk: Any) -> None:
    move(desk, "white", s0=-1, s1=0.5, s2=3, s3=10)
    scores = row([-1, 0.5, 3, 10])
    expected, _ = whiten(scores, torch.ones_like(scores, dtype=torch.bool))
    assert [number(desk, f"w{i}") for i in range(4)] == pytest.approx(expected[0].tolist(), abs=EXACT)


def test_bradley_terry_is_the_librarys(desk: Any) -> None:
    move(desk, "bt", w=-1, l=2)
    one = torch.ones(1, dtype=torch.float64)
    assert number(desk, "bt-loss") == pytest.approx(bradley_terry_loss(-one, 2 * one, one).item(), abs=EXACT)
    assert number(desk, "bt-p") == pytest.approx(1 / (1 + math.exp(3)), abs=EXACT)
    scores = [1.5, -0.5, 0.6, -3]
    move(desk, "rank", **{f"r{i}": score for i, score in enumerate(scores)})
    pairs = torch.tensor([[scores[i], scores[j]] for i in range(4) for j in range(i + 1, 4)], dtype=torch.float64)
    expected = bradley_terry_loss(pairs[:, 0], pairs[:, 1], torch.full((6,), 1 / 6, dtype=torch.float64))
    assert number(desk, "rank-loss") == pytest.approx(expected.item(), abs=EXACT)
    assert desk.locator("#rank-pairs tr").count() == 6


def test_lora_is_the_product_that_peft_adds(desk: Any) -> None:
    move(desk, "lora", rank=2, alpha=4, move=1.5)
    b = torch.tensor([[1.5, 1], [-1, 0.5], [0.2, -0.4]], dtype=torch.float64)
    a = torch.tensor([[1, 0, -0.5], [0.2, 1, 0]], dtype=torch.float64)
    shown = json.loads(desk.locator("#lora-delta").get_attribute("data-all"))
    assert torch.allclose(torch.tensor(shown, dtype=torch.float64), 4 / 2 * b @ a, atol=EXACT)


def test_the_top_of_the_gold_curve_is_where_its_slope_is_zero(desk: Any) -> None:
    """d·(α − β·log d) has the slope α − β·log d − β."""
    move(desk, "hack", alpha=1, gold=0.5, proxy=0.1, d=3)
    top = number(desk, "hack-top")
    assert 1 - 0.5 * math.log(top) - 0.5 == pytest.approx(0, abs=EXACT)
    assert "Over-optimised" in desk.inner_text("#hack-says")


def test_questions_are_answered_at_once_and_every_mistake_has_its_curve(desk: Any) -> None:
    questions = json.loads(desk.locator("#data").text_content())["questions"]
    for number_, one in enumerate(questions):
        wrong = (one["right"] + 1) % len(one["answers"])
        for answer, word in ((wrong, "Not quite."), (one["right"], "Right.")):
            desk.check(f"input[name=q{number_}][value='{answer}']")
            assert desk.locator("fieldset .why").nth(number_).inner_text().startswith(word)
    for button in desk.locator("#break-buttons button").all():
        button.click()
        assert desk.locator("#break-plot polyline").count() >= 1
        assert desk.locator("#break-doctor").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_axe_finds_no_serious_fault(browser: Any, file: Path, scheme: str) -> None:
    context = browser.new_context(**PHONE, offline=True, color_scheme=scheme)
    page = watched(context.new_page())
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= 375")
    assert page.complaints == []
    if not AXE.is_file():
        pytest.skip(f"it fits; but axe-core is not at {AXE}: npm install --no-save axe-core@4.14.1")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((result) => result.violations)")
    grave = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert grave == []
    context.close()
