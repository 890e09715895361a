"""A scheduler that stood still between its look and its deed fails no job that has gone on meanwhile."""

from builders.jobs import JobStory, make_blob
from luthier_common.contract import events as f
from luthier_common.contract.reasons import FailureReason
from luthier_common.kit.mongo import Database
from luthier_scheduler.store import Store

PROBLEM = f.Problem(code=FailureReason.BASE_MISSING, message="the base was not there")
FINISHED = f.RunFinished(step=6, artifact=make_blob(), trained_tokens=1, train_loss=1.0)


async def test_a_trained_job_is_not_failed_for_what_was_seen_while_it_waited(db: Database) -> None:
    story = await (await JobStory.created(db)).accepted()
    seen = await story.doc()
    await (await story.placed()).started()
    assert (await story.tell(FINISHED, attempt=1)).applied
    assert not (await Store(db).fail_waiting(seen, PROBLEM)).applied
    assert (await story.doc())["phase"] == "trained"


async def test_a_job_that_waits_again_is_judged_anew(db: Database) -> None:
    story = await (await JobStory.created(db)).accepted()
    seen = await story.doc()
    await story.placed()
    assert (await story.tell(f.RunLost(reason=FailureReason.LEASE_EXPIRED), attempt=1)).applied
    assert not (await Store(db).fail_waiting(seen, PROBLEM)).applied
    assert (await Store(db).fail_waiting(await story.doc(), PROBLEM)).applied


async def test_strikes_end_only_a_job_that_still_waits(db: Database) -> None:
    story = await (await JobStory.created(db, strikes=3)).accepted()
    await (await story.placed()).started()
    assert (await story.tell(FINISHED, attempt=1)).applied
    assert not (await Store(db).fail_exhausted(story.id, PROBLEM, 3)).applied
    assert (await story.doc())["phase"] == "trained"
