"""Hashes: of the bytes, and of what a value says."""

import hashlib
from pathlib import Path

import pytest

from plaudit.data.hashes import sha256, sha256_json, sha256_rows


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_the_hash_of_nothing_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert sha256(tmp_path / "a").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_the_hash_of_a_value_is_that_of_its_sorted_json() -> None:
    by_hand = hashlib.sha256(b'{"a": [1, "\\u00fc"], "b": null}').hexdigest()
    assert sha256_json({"b": None, "a": [1, "ü"]}) == by_hand
    assert sha256_json({"a": "ü"}, ensure_ascii=False) == hashlib.sha256('{"a": "ü"}'.encode()).hexdigest()


def test_the_hash_of_rows_is_that_of_their_lines() -> None:
    assert sha256_rows([{"x": 1}, {"x": 2}]) == hashlib.sha256(b'{"x": 1}\n{"x": 2}\n').hexdigest()
