"""The vLLM engine against a server that is really there and answers as vLLM does: replies, swaps, and what is lost."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm

from conftest import stir
from plaudit import rng
from plaudit.dist.ranks import ALONE
from plaudit.errors import EngineLost, RunStopped, UserError
from plaudit.models.config import LoraSettings
from plaudit.models.roles import Roles
from plaudit.models.rounding import Rounding
from plaudit.rollout import vllm
from plaudit.rollout.inprocess import InProcessEngine
from plaudit.rollout.vllm import DRAWS, SEEDS, VllmEngine, policy_name, served_name
from plaudit.run.stopping import Interrupted, signals_heard

FILES = {"sft/model/model.safetensors": "ab", "sft/model/config.json": "cd", "sft/model/tokenizer.json": "ef"}
END = 2
PROMPTS = [[5, 9, 17], [30, 11], [5, 9, 17, 40, 8], [7]]
UNIFORMS = rng.uniforms(3, "vllm", 0, list(range(len(PROMPTS))), 6)
ROUNDING = Rounding(0, "vllm")


@pytest.fixture
def server(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVllm]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = FakeVllm(tiny_model(), served_name(FILES, DRAWS))
    yield made
    made.stop()


def engine_at(*servers: FakeVllm, folder: Path, files: dict[str, str] = FILES) -> VllmEngine:
    urls = [server.url for server in servers]
    return VllmEngine(urls, files, folder / "policies", eos_id=[END], temperature=0.7, ranks=ALONE)


@pytest.fixture
def roles(tiny_model: Callable[..., Path], load: Callable[[Path], Any]) -> Roles:
    made = Roles(load(tiny_model()), trained="policy", lora=LoraSettings(r=4, alpha=8))
    with torch.no_grad():
        stir(made, 5)
    return made


def same(found: Any, expected: Any) -> None:
    assert [reply.ids for reply in found] == [reply.ids for reply in expected]
    for reply, other in zip(found, expected, strict=True):
        assert reply.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_replies_are_those_of_the_in_process_engine(
    server: FakeVllm, roles: Roles, tiny_model: Callable[..., Path], load: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Of the SFT model and of a policy; and a policy is loaded once, the one before unloaded and deleted."""
    engine, own = engine_at(server, folder=tmp_path), InProcessEngine(load(tiny_model()), eos_id=END, temperature=0.7)
    counted: list[int] = []
    first = engine.generate(PROMPTS, UNIFORMS, lambda row, reply: counted.append(row))
    same(first, own.generate(PROMPTS, UNIFORMS))
    assert sorted(counted) == [*range(len(PROMPTS))]
    for _ in range(2):
        engine.take(roles, ROUNDING)
        own.take(roles, ROUNDING)
        same(engine.generate(PROMPTS, UNIFORMS), own.generate(PROMPTS, UNIFORMS))
    first = policy_name(roles.adapter_parameters("policy"))
    assert list(server.adapters) == [first] and server.unloaded == []
    assert (tmp_path / "policies" / first / "adapter_model.safetensors").is_file()
    with torch.no_grad():
        stir(roles, 6)
    engine.take(roles, ROUNDING)
    own.take(roles, ROUNDING)
    same(engine.generate(PROMPTS, UNIFORMS), own.generate(PROMPTS, UNIFORMS))
    second = policy_name(roles.adapter_parameters("policy"))
    assert server.unloaded == [first] and list(server.adapters) == [second] and second != first
    assert [folder.name for folder in (tmp_path / "policies").iterdir()] == [second]
    engine.close()
    assert server.adapters == {} and not any((tmp_path / "policies").iterdir())


def test_a_finished_policy_is_sampled_from_its_adapter(server: FakeVllm, roles: Roles, tmp_path: Path) -> None:
    roles.save_adapter(tmp_path / "ppo" / "adapter")
    engine, taken = engine_at(server, folder=tmp_path), engine_at(server, folder=tmp_path)
    engine.use_adapter(tmp_path / "ppo" / "adapter")
    found = engine.generate(PROMPTS, UNIFORMS)
    engine.close()
    assert (tmp_path / "ppo" / "adapter").is_dir(), "what a stage has left is not the engine's to delete"
    taken.take(roles, ROUNDING)
    same(found, taken.generate(PROMPTS, UNIFORMS))


def test_a_policy_that_was_unloaded_is_no_other_model(server: FakeVllm, roles: Roles, tmp_path: Path) -> None:
    """Its name gives 404; the client does not go on with the base."""
    engine = engine_at(server, folder=tmp_path)
    engine.take(roles, ROUNDING)
    server.adapters.clear()
    engine.generate(PROMPTS, UNIFORMS)  # it is loaded again, by its digest
    assert list(server.adapters) == [policy_name(roles.adapter_parameters("policy"))]
    assert {body["model"] for body in server.sampled} == {*server.adapters}


def test_a_server_that_dies_is_asked_for_the_missing_replies_only(
    server: FakeVllm, roles: Roles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(vllm, "AT_ONCE", 1)
    engine = engine_at(server, folder=tmp_path)
    engine.take(roles, ROUNDING)
    expected = engine.generate(PROMPTS, UNIFORMS)
    server.sampled.clear()
    server.fails = 2
    same(engine.generate(PROMPTS, UNIFORMS), expected)
    assert [body["prompt"] for body in server.sampled] == PROMPTS, "none was asked for twice"
    assert len(server.adapters) == 1, "it was loaded anew"


def test_a_server_that_stays_away_stops_the_run(
    server: FakeVllm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm, "WAIT", 0.05)
    engine = engine_at(server, folder=tmp_path)
    engine.generate(PROMPTS, UNIFORMS)
    server.fails, server.comes_back = 1, False
    with pytest.raises(EngineLost, match=r"vLLM at http://127.0.0.1:\d+: .*start it with `plaudit launch vllm RECIPE`"):
        engine.generate(PROMPTS, UNIFORMS)


def test_restarts_that_bring_nothing_are_counted(server: FakeVllm, tmp_path: Path) -> None:
    """A server that answers 500 lives, and gives no reply: four times are enough."""
    engine, asked = engine_at(server, folder=tmp_path), []

    def broken(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        asked.append(path)
        return 500, {"error": "EngineDeadError"}

    server.answer = broken  # type: ignore[method-assign]
    with pytest.raises(EngineLost, match=r"status 500: .*given up after 3 restarts with 1 replies missing"):
        engine.generate(PROMPTS[:1], UNIFORMS[:1])
    assert len(asked) == 4


def test_who_hangs_up_waits_for_no_reply(server: FakeVllm, tmp_path: Path) -> None:
    """Though the server has all requests and answers none; and nothing is asked after that."""
    engine = engine_at(server, folder=tmp_path)
    server.open.clear()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(engine.generate, PROMPTS, UNIFORMS)
        while len(server.arrived) < len(PROMPTS) and not asked.done():
            time.sleep(0.01)
        engine.hang_up()
        with pytest.raises(EngineLost, match="hung up with 4 replies missing"):
            asked.result(30)
        with pytest.raises(EngineLost, match="hung up with 4 replies missing"):
            engine.generate(PROMPTS, UNIFORMS)
    assert server.sampled == [] and len(server.arrived) == len(PROMPTS)
    server.open.set()


def test_a_second_ctrl_c_waits_for_no_reply(server: FakeVllm, tmp_path: Path) -> None:
    engine = engine_at(server, folder=tmp_path)
    server.open.clear()

    def press() -> None:
        while len(server.arrived) < len(PROMPTS):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with signals_heard():
        threading.Thread(target=press, daemon=True).start()
        with pytest.raises(Interrupted):
            engine.generate(PROMPTS, UNIFORMS)
    assert server.sampled == [], "a minute later it would have answered"
    server.open.set()


def test_two_servers_share_the_replies(server: FakeVllm, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    other = FakeVllm(tiny_model(), served_name(FILES, DRAWS))
    alone = engine_at(server, folder=tmp_path).generate(PROMPTS, UNIFORMS)
    server.sampled.clear()
    same(engine_at(server, other, folder=tmp_path).generate(PROMPTS, UNIFORMS), alone)
    other.stop()
    assert len(server.sampled) == len(other.sampled) == 2


def test_a_server_of_another_model_is_refused(server: FakeVllm, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"serves sft-\w+-draws, not this run's SFT model \(sft-\w+-draws\)"):
        engine_at(server, folder=tmp_path, files={**FILES, "sft/model/model.safetensors": "other"}).generate(
            PROMPTS, UNIFORMS
        )
    tokenizer = {**FILES, "sft/model/tokenizer.json": "other"}
    assert len(engine_at(server, folder=tmp_path, files=tokenizer).generate(PROMPTS, UNIFORMS)) == 4


WRONG: dict[str, tuple[Any, str]] = {
    "an end in the middle": ({"token_ids": [END, 5], "logprobs": {"token_logprobs": [-1.0, -1.0]}}, "are no reply"),
    "cut short": ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -1.0]}}, "are no reply"),
    "nothing": ({"token_ids": [], "logprobs": {"token_logprobs": []}}, "are no reply"),
    "a number too few": ({"token_ids": [5, END], "logprobs": {"token_logprobs": [-1.0]}}, "are no reply"),
    "no finite number": ({"token_ids": [5, END], "logprobs": {"token_logprobs": [-1.0, float("nan")]}}, "no reply"),
    "no ids": ({"text": "Yes."}, "holds no reply"),
    "no log-probs": ({"token_ids": [5, END], "logprobs": None}, "holds no reply"),
}


@pytest.mark.parametrize(("choice", "message"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_answer_stops_the_run(server: FakeVllm, choice: Any, message: str, tmp_path: Path) -> None:
    server._complete = lambda body: {"choices": [choice]}  # type: ignore[method-assign]
    with pytest.raises(RunStopped, match=message):
        engine_at(server, folder=tmp_path).generate(PROMPTS, UNIFORMS)


def test_a_server_that_draws_by_itself_gets_a_seed_a_reply(server: FakeVllm, tmp_path: Path) -> None:
    """A function of the reply's own numbers, and the temperature where vLLM looks for it."""
    server.name = served_name(FILES, SEEDS)
    said = {"token_ids": [END], "logprobs": {"token_logprobs": [-0.5]}}
    server._complete = lambda body: {"choices": [said]}  # type: ignore[method-assign]
    for _ in range(2):
        engine_at(server, folder=tmp_path).generate(PROMPTS, UNIFORMS)
    bodies = sorted(server.sampled, key=json.dumps)
    assert bodies[::2] == bodies[1::2], "asked again, the same seed"
    assert len({body["seed"] for body in bodies}) == len(PROMPTS)
    assert {body["temperature"] for body in bodies} == {0.7} and all("vllm_xargs" not in body for body in bodies)
