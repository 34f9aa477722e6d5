"""The parts of the labelling page that know of no page: places, answers, drafts, waiting. Run where they will run."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from label_fake import Fake, serving

# Ordered Bell numbers: in how many ways 3 and 4 things can be ordered when ties are allowed.
ORDERS = {3: 13, 4: 75}


@pytest.fixture(scope="module")
def script(browser: Any) -> Iterator[Any]:
    """script("ranks", "m.dense([1, 3, 3])"): a value computed with one of the modules."""
    with serving(Fake([])) as fake:
        page = browser.new_page()
        page.goto(fake.url + "/login")

        def run(module: str, expression: str) -> Any:
            return page.evaluate(
                f"async () => {{ const m = await import('/static/{module}.js'); return {expression}; }}"
            )

        yield run
        page.close()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # A place is given whoever is there: a tie; null takes it away.
        ("m.give([null, 1, null], 0, 1)", [1, 1, None]),
        ("m.give([2, 1, null], 0, null)", [None, 1, None]),
        # A place of one's own before the second: those behind move down as far as they must.
        ("m.insert([1, 2, 3, null], 3, 2)", [1, 3, 4, 2]),
        ("m.insert([1, 2, 4, null], 3, 2)", [1, 3, 4, 2]),
        ("m.insert([1, 2, 3], 2, 1)", [2, 3, 1]),
        ("m.insert([1, 2, 3], 0, 4)", [3, 1, 2]),
        ("m.insert([1, 1, 2], 1, 1)", [2, 1, 3]),
        ("m.insert([4, 4, 3, 3], 0, 5)", [4, 3, 2, 2]),
        # Half a step makes a tie, the next half passes.
        ("m.step([1, 2, 3], 2, -1)", [1, 2, 2]),
        ("m.step([1, 2, 2], 2, -1)", [1, 3, 2]),
        ("m.step([1, 3, 2], 2, -1)", [1, 3, 1]),
        ("m.step([1, 2, 2], 1, 1)", [1, 3, 2]),
        ("m.step([1, 2, 3], 0, -1)", [1, 2, 3]),
        ("m.step([1, 2, 3], 2, 1)", [1, 2, 3]),
        ("m.step([1, null, null], 2, -1)", [1, None, 3]),
        ("m.step([1, 1, 1], 1, -1)", [2, 1, 2]),
        ("m.dense([1, 3, 3])", [1, 2, 2]),
        ("m.dense([4, 2, 4, 3])", [3, 1, 3, 2]),
        ("m.dense([1, null])", None),
        ("m.unplaced([null, 1, null])", [0, 2]),
    ],
)
def test_places(script: Any, expression: str, expected: Any) -> None:
    assert script("ranks", expression) == expected


@pytest.mark.parametrize("count", sorted(ORDERS))
def test_two_keys_reach_every_order_and_stay_in_bounds(script: Any, count: int) -> None:
    found = script(
        "ranks",
        f"""(() => {{
          const start = Array.from({{ length: {count} }}, (_, i) => i + 1), seen = new Set(), orders = new Set();
          const queue = [start];
          while (queue.length) {{
            const places = queue.pop();
            if (seen.has(String(places))) continue;
            seen.add(String(places)); orders.add(String(m.dense(places)));
            if (places.some((place) => !(place >= 1 && place <= {count}))) return "out of bounds";
            for (let reply = 0; reply < {count}; reply += 1) {{
              for (const way of [-1, 1]) queue.push(m.step(places, reply, way));
            }}
          }}
          return orders.size;
        }})()""",
    )
    assert found == ORDERS[count]


def test_an_answer_is_whole_or_says_what_is_missing(script: Any) -> None:
    def missing(task: str, change: str) -> Any:
        return script("answer", f"m.missing({{ ...m.emptyAnswer(3), {change} }}, '{task}')")

    assert missing("rank", "") == [0, 1, 2]
    assert missing("rank", "places: [1, null, 2]") == [1]
    assert missing("rank", "places: [1, 1, 2]") is None
    assert missing("rank", "verdict: 'cannot_judge'") is None
    assert missing("rank", "verdict: 'all_bad'") is None
    assert missing("rank", "verdict: 'all_bad', places: [1, null, null]") == [1, 2]
    assert missing("write", "text: ' \\n '") == "text"
    assert missing("write", "text: 'x'") is None


def test_what_is_sent_is_in_the_contract_and_comes_back(script: Any) -> None:
    sent = script(
        "answer",
        "m.positionsOf({ ...m.emptyAnswer(3), places: [3, 1, 3], strength: 2, reason: 'r',"
        " flags: [[], ['unsafe'], []] }, 'rank')",
    )
    assert sent == {
        "ranks": [2, 1, 2],
        "verdict": None,
        "strength": 2,
        "reason": "r",
        "flags": [[], ["unsafe"], []],
        "text": None,
    }
    again = "m.positionsOf(m.answerOf(p, 3), 'rank')"
    assert script("answer", f"((p) => {again})({{ ...{json.dumps(sent)} }})") == sent
    # Judging is over when it cannot be judged; giving a place says that it can.
    unjudged = "m.judge({ ...m.emptyAnswer(2), places: [1, 2], strength: 3 }, 'cannot_judge')"
    assert script("answer", f"m.positionsOf({unjudged}, 'rank')") == {
        "ranks": None,
        "verdict": "cannot_judge",
        "strength": None,
        "reason": "",
        "flags": [[], []],
        "text": None,
    }
    assert script("answer", f"m.withPlaces({unjudged}, [1, null]).verdict") is None
    assert script("answer", "m.judge(m.judge(m.emptyAnswer(2), 'all_bad'), 'all_bad').verdict") is None


def test_undo_goes_back_step_by_step_and_keeps_what_was_typed(script: Any) -> None:
    found = script(
        "answer",
        """(() => {
          let state = m.begin(m.emptyAnswer(2));
          state = m.change(state, m.withPlaces(state.now, [1, null]));
          state = m.change(state, m.withPlaces(state.now, [1, 2]));
          state = m.type(state, { reason: "typed" });
          const places = [];
          for (let n = 0; n < 3; n += 1) { state = m.undo(state); places.push(state.now.places); }
          return { places, reason: state.now.reason, left: state.past.length };
        })()""",
    )
    assert found == {
        "places": [[1, None], [None, None], [None, None]],
        "reason": "typed",
        "left": 0,
    }


DRAFTS = """(() => {
  let time = 1000, made = 0;
  localStorage.clear();
  const options = { now: () => time, makeId: () => `id-${(made += 1)}` };
  const ann = m.drafts(localStorage, "ann", options), bo = m.drafts(localStorage, "bo", options);
  %s
})()"""


def test_a_draft_keeps_its_id_until_the_server_refused_it(script: Any) -> None:
    found = script(
        "draft",
        DRAFTS
        % """
        const first = ann.save("k", ann.open("k", "empty"), "half");
        const again = ann.open("k", "empty");
        const sending = ann.sending("k", again, { path: "/p", body: { lease: "l", positions: 1 } });
        const unfinished = ann.unfinished();
        const refused = ann.refused("k", sending);
        const others = bo.read("k");
        ann.sent("k", 7, { lease: "l" });
        return [first.client_id, again.client_id, again.state, sending.client_id, unfinished, refused.client_id,
                refused.pending, others, ann.read("k"), ann.wasSent("k").seq, ann.wasSent("k").lease];
        """,
    )
    assert found == ["id-1", "id-1", "half", "id-1", ["k"], "id-2", None, None, None, 7, "l"]


def test_old_drafts_go_but_never_what_may_not_have_arrived(script: Any) -> None:
    found = script(
        "draft",
        DRAFTS
        % """
        ann.save("old", ann.open("old"), "x");
        ann.sending("waiting", ann.open("waiting"), { path: "/p", body: {} });
        time += 31 * 24 * 3600 * 1000;
        ann.save("new", ann.open("new"), "x");
        ann.tidy();
        return ["old", "waiting", "new"].map((key) => ann.read(key) !== null);
        """,
    )
    assert found == [False, True, True]


def test_a_browser_without_room_is_noticed_and_does_not_stop_the_sending(script: Any) -> None:
    found = script(
        "draft",
        """(() => {
          let told = 0;
          const setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
          const full = { getItem: () => null, setItem, removeItem() {} };
          const kept = m.drafts(full, "ann", { onFull: () => (told += 1) });
          const draft = kept.sending("k", kept.open("k", "s"), { path: "/p", body: 1 });
          return [told, draft.pending.body];
        })()""",
    )
    assert found == [1, 1]


def test_ids_are_random_uuids(script: Any) -> None:
    found = script("draft", "Array.from({ length: 200 }, m.randomId)")
    assert len(set(found)) == 200
    assert {(uuid.UUID(one).version, uuid.UUID(one).variant, str(uuid.UUID(one)) == one) for one in found} == {
        (4, uuid.RFC_4122, True)
    }


def test_the_pause_doubles_is_spread_and_ends_at_half_a_minute(script: Any) -> None:
    assert script("server", "[0, 1, 2, 3, 4, 5, 9].map((count) => m.pause(count, 1))") == [
        1000,
        2000,
        4000,
        8000,
        16000,
        30000,
        30000,
    ]
    assert script("server", "[m.pause(3, 0), m.pause(0, 1, 5000)]") == [4000, 5000]
