"""What an annotator's page is told of the texts."""

from label_kit import World, draft

from plaudit.label.db.database import writing
from plaudit.label.queue.items import add_items
from plaudit.label.queue.settings import settle
from plaudit.records import Completion


def test_replies_that_look_alike_when_formatted_are_said_to(small_world: World) -> None:
    twins = (Completion("**Yes**  "), Completion("**Yes**"), Completion("No"), Completion("Maybe"))
    add_items(small_world.engine, [draft(1, replies=twins)])
    ann = small_world.join("ann")
    assert ann.claim()["item"]["look_alike"] is True
    add_items(small_world.engine, [draft(2)])
    assert small_world.join("bo").claim()["item"]["look_alike"] is False


def test_the_project_says_how_texts_are_shown_at_first(small_world: World) -> None:
    assert small_world.join("ann").me["project"]["plain_text"] is False
    with writing(small_world.engine) as connection:
        settle(connection, {"plain_text": True})
    boss = small_world.join("boss", "admin")
    assert boss.me["project"]["plain_text"] is True
    assert boss.post("/api/admin/project", {"plain_text": False}).json()["plain_text"] is False
