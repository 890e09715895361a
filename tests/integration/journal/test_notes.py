"""Where facts lie is noted for those that still wait for their rows, and for no others."""

from builders.jobs import JobStory
from luthier_common.contract.topics import Kind
from luthier_common.journal.notes import Notes
from luthier_common.kit.mongo import Database


async def test_what_has_left_the_outbox_is_not_noted(db: Database) -> None:
    waiting, trimmed = [await JobStory.created(db) for _ in range(2)]
    notes = Notes(db)
    notes.add(Kind.JOB, 3, {(waiting.id, 1): 7, (trimmed.id, 1): 8})
    notes.forget(Kind.JOB, {trimmed.id: [1], "ftjob-unknown": [4]})
    assert notes.ids() == {f"job/{waiting.id}/1"}
    await notes.write()
    places = [
        [(entry["partition"], entry["offset"]) for entry in (await story.doc())["outbox"]]
        for story in (waiting, trimmed)
    ]
    assert (places, notes.ids()) == ([[(3, 7)], [(None, None)]], frozenset())


async def test_a_note_that_comes_after_the_trimming_changes_nothing(db: Database) -> None:
    story, notes = await JobStory.created(db), Notes(db)
    await db["jobs"].update_one({"_id": story.id}, {"$set": {"outbox": [], "pend": False, "unsent": False}})
    before = await story.doc()
    notes.add(Kind.JOB, 3, {(story.id, 1): 7})
    await notes.write()
    assert await story.doc() == before
