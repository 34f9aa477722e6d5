"""docs/ppo-maths.md: its Python runs from top to bottom and prints what the page says."""

import doctest
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ppo-maths.md"


def run(text: str) -> doctest.TestResults:
    """All Python blocks of a page, in one namespace."""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    runner, names = doctest.DocTestRunner(), dict[str, Any]()
    for number, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {number + 1}", PAGE.name, 0)
        runner.run(test, clear_globs=False)
        names = test.globs
    return runner.summarize(verbose=False)


def test_the_examples_of_the_page_are_what_the_library_says() -> None:
    results = run(PAGE.read_text(encoding="utf-8"))
    assert results.attempted > 40
    assert results.failed == 0


def test_a_wrong_number_on_the_page_is_noticed() -> None:
    wrong = PAGE.read_text(encoding="utf-8").replace("[-3.0, -1.5, 4.5]", "[-3.0, -1.5, 4.6]")
    assert run(wrong).failed == 1
