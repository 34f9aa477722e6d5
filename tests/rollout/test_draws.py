"""The logits processor of the vLLM server, without a server: whichever row a request is in, its own numbers draw."""

import base64
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.rollout.inprocess import sample

SWAP, OVER = SimpleNamespace(name="SWAP"), SimpleNamespace(name="UNIDIRECTIONAL")


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """The processor's module, over a stand-in for the one class of vLLM that it imports."""
    patch, name = pytest.MonkeyPatch(), "vllm.v1.sample.logits_processor"
    made = ModuleType(name)
    made.LogitsProcessor = object  # type: ignore[attr-defined]
    for part in ("vllm", "vllm.v1", "vllm.v1.sample"):
        patch.setitem(sys.modules, part, ModuleType(part))
    patch.setitem(sys.modules, name, made)
    from plaudit.rollout.server.plaudit_draws import processor

    yield processor
    del sys.modules[processor.__name__]
    patch.undo()


def asks(uniforms: list[float], temperature: float = 1.0) -> SimpleNamespace:
    text = base64.b64encode(np.array(uniforms, dtype="<f4").tobytes()).decode()
    given = {"plaudit_draws": text, "plaudit_temperature": temperature}
    return SimpleNamespace(extra_args=given, max_tokens=len(uniforms))


def changed(removed: Any = (), added: Any = (), moved: Any = ()) -> SimpleNamespace:
    return SimpleNamespace(removed=removed, added=added, moved=moved)


def logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, 700, generator=torch.Generator().manual_seed(4)) * 3


def test_a_row_keeps_the_token_that_its_number_draws_and_its_log_probability(module: Any) -> None:
    draws, given = module.Draws(None, torch.device("cpu"), False), logits(3)
    so_far: list[int] = []
    other = SimpleNamespace(extra_args=None, max_tokens=4)
    draws.update_state(changed(added=[(0, asks([0.3, 0.9], 0.7), None, so_far), (1, other, None, [])]))
    draws.update_state(changed(added=[(2, asks([0.6], 1.3), None, [])]))
    for place, uniform in enumerate((0.3, 0.9)):
        found = draws.apply(given.clone())
        for row, (number, temperature) in {0: (uniform, 0.7), 2: (0.6, 1.3)}.items():
            token, logprob = sample(given[row : row + 1], torch.tensor([number]), temperature)
            assert found[row].argmax() == token
            assert found[row].isfinite().sum() == 1
            assert torch.equal(found[row][token], logprob)
        assert torch.equal(found[1], given[1]), "a request without numbers is left alone"
        so_far.append(place)  # vLLM itself makes the list longer


def test_requests_go_come_and_change_places(module: Any) -> None:
    draws, numbers = module.Draws(None, torch.device("cpu"), False), [0.05, 0.35, 0.65, 0.95]
    given = torch.zeros(4, 512)
    given[:, :4] = 50.0  # four tokens of a quarter each: the number names the token

    def tokens(rows: int) -> list[int]:
        return draws.apply(given[:rows].clone()).argmax(dim=1).tolist()

    draws.update_state(changed(added=[(row, asks([number]), None, []) for row, number in enumerate(numbers)]))
    assert tokens(4) == [0, 1, 2, 3]
    draws.update_state(None)
    draws.update_state(changed(moved=[(0, 3, SWAP)]))
    assert tokens(4) == [3, 1, 2, 0]
    draws.update_state(changed(removed=[1], moved=[(3, 1, OVER)]))
    assert tokens(3) == [3, 0, 2]
    draws.update_state(changed(removed=[1], added=[(0, asks([0.35]), None, [])], moved=[(2, 1, OVER)]))
    assert tokens(2) == [1, 2]


def test_too_few_numbers_are_refused(module: Any) -> None:
    short = asks([0.1, 0.2])
    short.max_tokens = 3
    module.Draws.validate_params(asks([0.1, 0.2]))
    with pytest.raises(ValueError, match="2 draws for max_tokens=3"):
        module.Draws.validate_params(short)
