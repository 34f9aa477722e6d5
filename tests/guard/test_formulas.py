"""The doctor's own formulas, by hand, and that they are its own."""

import ast
import math
from pathlib import Path

import numpy as np

from plaudit.guard import arithmetic, formulas


def close(found: object, expected: object) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # type: ignore[arg-type]


def array(*values: float) -> formulas.Floats:
    return np.array(values, dtype=np.float64)


def test_the_doctor_computes_with_nothing_that_a_run_computes_with() -> None:
    for module in (formulas, arithmetic):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert imported and not [name for name in imported if name.startswith("plaudit.algo")]


def test_the_estimates_of_the_kl() -> None:
    """π/π_ref = 2: k1 = ln 2, k2 = ln²2/2 = 0.240227, k3 = ½ − 1 + ln 2 = 0.193147."""
    old, ref = np.log(array(0.5)), np.log(array(0.25))
    for name, expected in (("k1", 0.6931471805599453), ("k2", 0.2402265069591007), ("k3", 0.1931471805599453)):
        close(formulas.kl_estimates(old, ref, name), [expected])


def test_discounted_sums() -> None:
    """½: 1 + 2/2 + 4/4 = 3, 2 + 4/2 = 4, 4; a discount of 0 leaves each number alone, 1 sums them up."""
    x = array(1, 2, 4)
    close(formulas.discounted(x, 0.5), [3, 4, 4])
    close(formulas.discounted(x, 0.0), x)
    close(formulas.discounted(x, 1.0), [7, 6, 4])


def test_gae_known_answers() -> None:
    """δ = (−.2, −.3, .7), Â = (−.2 + .95·.365, −.3 + .95·.7, .7)."""
    rewards, values = array(-0.1, -0.2, 1.0), array(0.5, 0.4, 0.3)
    close(formulas.gae(rewards, values, 0.0, 1.0, 0.95), [0.14675, 0.365, 0.7])
    # γ = λ = ½: δ = (−.4, −.45, .7).
    close(formulas.gae(rewards, values, 0.0, 0.5, 0.5), [-0.46875, -0.275, 0.7])
    # Cut where the next state is worth 4: δ = (−.25, 2 + 4 − .25), γ = 1, λ = .95.
    close(formulas.gae(array(0, 2), array(0.5, 0.25), 4.0, 1.0, 0.95), [5.2125, 5.75])


def test_groups() -> None:
    """(1, 2, 6): others' means 4, 3.5, 1.5. (0, 0, 4, 4): mean 2, std 2; a group of equal returns teaches nothing."""
    close(formulas.leave_one_out(array(1, 2, 6), 3), [-3, -1.5, 4.5])
    close(formulas.leave_one_out(array(1, 2, 6, 4), 2), [-1, 1, 2, -2])
    close(formulas.in_group(array(0, 0, 4, 4), 4, True), [-1, -1, 1, 1])
    close(formulas.in_group(array(0, 0, 4, 4), 4, False), [-2, -2, 2, 2])
    close(formulas.in_group(array(0, 4, 0.1 + 0.2, 0.3), 2, True), [-1, 1, 0, 0])


def test_whitening_is_over_the_tokens_of_all_replies() -> None:
    """(1, 1) and (3): mean 5/3, std √8/3, so −1/√2, −1/√2, √2; numbers that are all alike become 0."""
    first, second = formulas.whitened([array(1, 1), array(3)])
    close(first, [-1 / math.sqrt(2)] * 2)
    close(second, [math.sqrt(2)])
    close(np.concatenate(formulas.whitened([array(0.1, 0.1), array(0.3 - 0.2)])), [0, 0, 0])
