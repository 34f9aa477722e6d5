"""The pairs of W-RM and of the comparison of held-out accuracy: one selection, so that all trainers see the same rows.

Takes the strict pairs (rank a < rank b) of a file of rankings or pairs, of any format that Plaudit reads, keeps those
with both sides at most 256 tokens (prompt, reply and what the chat template writes around them), and splits by prompt:

- a share of the prompts (`--held-out`, 0 unless told), drawn with a fixed seed, is set aside;
- train.jsonl: the first N pairs of the other prompts, in file order;
- held_out.jsonl: all pairs of the prompts that have none in train.jsonl, in file order; `--held-out-tokens` lets longer
  ones in too, since a comparison of two trainers needs many pairs to judge more than it needs short ones.

Rows are conversational `prompt`/`chosen`/`rejected`, which the ecosystem's trainers read, with the number of the prompt
in the file and the split.

    python benchmarks/pairs.py --model FOLDER --data alpaca_eval_rankings.jsonl.gz --to pairs/rankings           W-RM
    python benchmarks/pairs.py --model FOLDER --data hh_harmless_pairs.jsonl.gz --to pairs/hh --count 600 --held-out 0.4
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from plaudit import rng
from plaudit.data.chat import ChatFormat
from plaudit.data.files import Reading, read_rankings, write_rows
from plaudit.data.formats.rows import Row
from plaudit.data.hashes import sha256
from plaudit.models.load import load_tokenizer, resolve
from plaudit.records import Message, Preference, preferences_of

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
COUNT, WIDTH = 256, 256


@dataclass(frozen=True)
class Pairs:
    """Training and held-out pairs; no prompt is in both."""

    train: list[Preference]
    held_out: list[Preference]

    def prompts(self) -> list[int]:
        """The number of every held-out pair's prompt: pairs of one prompt belong together in an interval."""
        numbers: dict[tuple[Message, ...], int] = {}
        return [numbers.setdefault(pair.prompt.messages, len(numbers)) for pair in self.held_out]

    def length_verdicts(self) -> list[float]:
        """Of every held-out pair: is the reply right whose length won more often in training? ½ for equal lengths."""
        longer = sum(_longer(pair) for pair in self.train) >= len(self.train) / 2
        return [_longer(pair) if longer else 1 - _longer(pair) for pair in self.held_out]


def _longer(pair: Preference) -> float:
    chosen, rejected = len(pair.chosen.text), len(pair.rejected.text)
    return 0.5 if chosen == rejected else float(chosen > rejected)


def tokens_of(chat: ChatFormat, pair: Preference) -> int:
    """Tokens of the longer side, counted as a trainer does that hands the whole conversation to the template.

    The template may write more after the end of the turn than Plaudit keeps, so neither trainer has more than this.
    """
    found = 0
    for reply in (pair.chosen, pair.rejected):
        turns = [message.as_json() for message in (*pair.prompt.messages, Message("assistant", reply.text))]
        whole = chat.tokenizer.apply_chat_template(turns, return_dict=False)
        found = max(found, len(whole), len(chat.prompt_ids(pair.prompt.messages)) + len(chat.reply_ids(reply)))
    return found


def select(
    chat: ChatFormat,
    data: Path,
    count: int = COUNT,
    share: float = 0.0,
    seed: int = 0,
    bad: list[Row] | None = None,
    held_out_tokens: int = WIDTH,
) -> Pairs:
    """See above; bad rows go to `bad`, without it the first one stops. ValueError when the file has too few pairs."""
    every = [pair for ranking in read_rankings(data, Reading(bad=bad)) for pair in preferences_of(ranking)]
    tokens = [tokens_of(chat, pair) for pair in every]
    short = [pair for pair, count_of in zip(every, tokens, strict=True) if count_of <= WIDTH]
    judged = [pair for pair, count_of in zip(every, tokens, strict=True) if count_of <= held_out_tokens]
    prompts = list(dict.fromkeys(pair.prompt.messages for pair in short))
    drawn = rng.permutation(seed, "pairs", 0, len(prompts))[: round(share * len(prompts))]
    aside = {prompts[i] for i in drawn}
    train = [pair for pair in short if pair.prompt.messages not in aside][:count]
    trained = {pair.prompt.messages for pair in train}
    held_out = [pair for pair in judged if pair.prompt.messages not in trained]
    if len(train) < count or not held_out:
        raise ValueError(
            f"{data}: of {len(every)} strict pairs {len(short)} have at most {WIDTH} tokens; {len(train)} of {count} "
            f"training pairs and {len(held_out)} held-out ones are left"
        )
    return Pairs(train, held_out)


def write(pairs: Pairs, folder: Path) -> None:
    for name, split, rows in ((TRAIN, "train", pairs.train), (HELD_OUT, "test", pairs.held_out)):
        numbers: dict[tuple[Message, ...], str] = {}
        write_rows(
            folder / name,
            (
                {
                    "id": numbers.setdefault(row.prompt.messages, f"{split}-{len(numbers)}"),
                    "split": split,
                    **row.as_json(),
                }
                for row in rows
            ),
        )


def read(folder: Path, limit: int | None = None) -> Pairs:
    """What `write` left; `limit` pairs of each for a look."""
    train, held_out = (
        [pair for ranking in read_rankings(folder / name) for pair in preferences_of(ranking)][:limit]
        for name in (TRAIN, HELD_OUT)
    )
    return Pairs(train, held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="its tokenizer counts")
    parser.add_argument("--data", required=True, type=Path, help="rankings or pairs, of any format")
    parser.add_argument("--to", required=True, type=Path, help="the folder to write to")
    parser.add_argument("--count", type=int, default=COUNT, help="training pairs")
    parser.add_argument("--held-out", type=float, default=0.0, help="share of the prompts that is drawn to be held out")
    parser.add_argument("--held-out-tokens", type=int, default=WIDTH, help="longest held-out side")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    given = parser.parse_args()
    bad: list[Row] = []
    chat = ChatFormat(load_tokenizer(resolve(given.model)))
    pairs = select(chat, given.data, given.count, given.held_out, given.seed, bad, given.held_out_tokens)
    write(pairs, given.to)
    held_out = given.to / HELD_OUT
    right = pairs.length_verdicts()
    print(f"{len(pairs.train)} training pairs; {len(right)} held-out pairs of {len(set(pairs.prompts()))} prompts")
    if bad:
        print(f"{len(bad)} bad rows left out, the first: {bad[0].problem}")
    print(f"length alone is right in {sum(right) / len(right):.3f} of the held-out pairs")
    print(f"{sha256(held_out)[:12]} {held_out}")


if __name__ == "__main__":
    main()
