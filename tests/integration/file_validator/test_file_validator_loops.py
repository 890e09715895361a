"""What a user sees of uploaded files and of jobs that check theirs."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from builders.bases import chat_row
from builders.jobs import ACTOR, JobStory, make_spec
from builders.waiting import until
from luthier_common.contract import events as f
from luthier_common.contract.spec import Hyperparameters
from luthier_common.contract.topics import Kind
from luthier_common.journal.advance import advance
from luthier_common.kit.mongo import Database, Doc
from luthier_common.kit.objects import ObjectStore
from luthier_file_validator.jobs import HORIZON

Make = Callable[..., Any]


def jsonl(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, str) else json.dumps(row)).encode() + b"\n" for row in rows)


def good_rows(num_rows: int) -> list[dict[str, Any]]:
    return [chat_row(f"Where is parcel {n}?", f"Parcel {n} arrives on day {n % 7}.") for n in range(num_rows)]


async def moved_on(db: Database, kind: str, thing_id: str, phase: str, *validators: Any) -> Doc:
    """The thing when it has left `phase`, with every validator looking at its work all the while."""

    async def look() -> Doc | None:
        await asyncio.gather(*(validator.look() for validator in validators))
        doc: Doc | None = await db[kind].find_one({"_id": thing_id, "phase": {"$ne": phase}})
        return doc

    return await until(look, within_s=30, every_s=0.1, what=f"{thing_id} leaves {phase}")


async def a_job(db: Database, **spec: Any) -> JobStory:
    return await JobStory.created(db, spec=make_spec(**spec))


async def test_every_bad_line_of_a_file_is_reported(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make, base: str
) -> None:
    rows: list[Any] = good_rows(12)
    rows[3] = "{not json"
    rows[7] = {"messages": [{"role": "wizard", "content": "a secret"}]}
    file_id = await upload(jsonl(*rows))
    doc = await moved_on(db, "files", file_id, "uploaded", await make_validator())
    verdict = doc["verdict"]
    assert (doc["status"], verdict["valid"], verdict["num_examples"]) == ("error", False, 10)
    assert (verdict["problem"]["code"], verdict["problem"]["line"]) == ("invalid_json", 4)
    assert "2 lines" in verdict["problem"]["message"]
    body = await objects.read(verdict["report_key"])
    assert {finding["line"] for finding in json.loads(body)["findings"]} == {4, 8}
    assert b"secret" not in body
    entry = await db["objects"].find_one({"_id": verdict["report_key"]})
    assert entry is not None
    assert entry["references"] == [f"file/{file_id}"]
    assert entry["sha256"] == verdict["report_sha256"]


async def test_a_good_file_is_processed_and_its_tokens_are_counted(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    file_id = await upload(jsonl(*good_rows(12)))
    doc = await moved_on(db, "files", file_id, "uploaded", await make_validator())
    assert (doc["status"], doc["verdict"]["valid"], doc["verdict"]["num_examples"]) == ("processed", True, 12)
    assert doc["verdict"]["num_tokens"] > 12 * 10


async def test_many_jobs_on_one_file_read_it_once(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make, base: str
) -> None:
    validator = await make_validator()
    file_id = await upload(jsonl(*good_rows(12)))
    await moved_on(db, "files", file_id, "uploaded", validator)
    first = await a_job(db, training_file=file_id)
    accepted = await moved_on(db, "jobs", first.id, "checking", validator)
    file = await db["files"].find_one({"_id": file_id})
    assert file is not None
    await objects.delete(file["object_key"])
    again = await a_job(db, training_file=file_id)
    known = await moved_on(db, "jobs", again.id, "checking", validator)
    assert known["phase"] == accepted["phase"] == "waiting"
    assert known["datasets"] == accepted["datasets"]
    shorter = await a_job(db, training_file=file_id, hyperparameters=Hyperparameters(context_length=64))
    other_rules = await moved_on(db, "jobs", shorter.id, "checking", validator)
    assert other_rules["error"]["code"] == "storage", "by other rules the file is read again"


async def test_work_is_found_behind_any_number_of_jobs_whose_files_have_no_verdict_yet(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    validator = await make_validator()
    file_id = await upload(jsonl(*good_rows(12)))
    await moved_on(db, "files", file_id, "uploaded", validator)
    early = await a_job(db, training_file=await upload(jsonl(*good_rows(12))))
    doc = await early.doc() | {"outbox": [], "unsent": False, "pend": False}
    await db["jobs"].insert_many([doc | {"_id": f"{early.id}-{count:05d}"} for count in range(HORIZON + 100)])
    late = await a_job(db, training_file=file_id)
    assert (await moved_on(db, "jobs", late.id, "checking", validator.jobs))["phase"] == "waiting"
    assert await db["jobs"].count_documents({"phase": "checking"}) == HORIZON + 101


async def test_without_a_base_the_number_of_tokens_is_unknown(db: Database, make_validator: Make, upload: Make) -> None:
    doc = await moved_on(db, "files", await upload(jsonl(*good_rows(2))), "uploaded", await make_validator())
    assert doc["verdict"]["valid"]
    assert doc["verdict"]["num_tokens"] is None


async def test_a_default_base_that_cannot_be_read_makes_no_file_bad(
    db: Database, make_validator: Make, upload: Make, put_template: Make
) -> None:
    await put_template("{% this is no template")
    doc = await moved_on(db, "files", await upload(jsonl(*good_rows(12))), "uploaded", await make_validator())
    assert (doc["verdict"]["valid"], doc["verdict"]["num_tokens"]) == (True, None)


async def test_other_purposes_are_valid_at_once(db: Database, make_validator: Make, upload: Make) -> None:
    file_id = await upload(b"\x00\x01 anything", purpose="user_data")
    doc = await moved_on(db, "files", file_id, "uploaded", await make_validator())
    assert doc["status"] == "processed"


@pytest.mark.parametrize(
    ("template", "limits"),
    [
        ("{{ ('a' * 4000000000)[0:0] }}", {}),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {"check_cpu_s": 1}),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {"check_wall_s": 1.0}),
    ],
)
async def test_a_check_beyond_its_limits_ends_with_a_verdict(
    db: Database, make_validator: Make, upload: Make, put_template: Make, template: str, limits: dict[str, Any]
) -> None:
    await put_template(template)
    doc = await moved_on(db, "files", await upload(jsonl(*good_rows(12))), "uploaded", await make_validator(**limits))
    assert doc["verdict"]["problem"]["code"] == "check_limits_exceeded"
    assert doc["verdict"]["num_findings"] == 1


async def test_damaged_bytes_are_the_operators_problem(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make
) -> None:
    file_id = await upload(jsonl(*good_rows(12)))
    await objects.put(f"org-default/proj-default/files/{file_id}", b"{}")
    doc = await moved_on(db, "files", file_id, "uploaded", await make_validator())
    assert (doc["verdict"]["problem"]["code"], doc["verdict"]["problem"]["owner"]) == ("storage", "operator")


async def test_two_validators_give_one_verdict(db: Database, make_validator: Make, upload: Make, base: str) -> None:
    files = [await upload(jsonl(*good_rows(11))) for _ in range(3)]
    job = await a_job(db, training_file=files[0], validation_file=files[1])
    validators = [await make_validator(), await make_validator()]
    for file_id in files:
        doc = await moved_on(db, "files", file_id, "uploaded", *validators)
        assert [entry["type"] for entry in doc["outbox"]] == ["FileUploaded", "FileValidated"]
    doc = await moved_on(db, "jobs", job.id, "checking", *validators)
    told = [entry["type"] for entry in doc["outbox"]]
    assert told == ["JobCreated", "DatasetProcessed", "DatasetProcessed", "DataAccepted"]


async def test_a_job_with_good_files_is_accepted(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make, base: str
) -> None:
    training = await upload(jsonl(*good_rows(12)))
    validation = await upload(jsonl(*good_rows(3)))
    job = await a_job(db, training_file=training, validation_file=validation)
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["phase"], doc["status"]) == ("waiting", "queued")
    assert (doc["datasets"]["training"]["num_examples"], doc["datasets"]["validation"]["num_examples"]) == (12, 3)
    assert 0 < doc["datasets"]["training"]["num_trained_tokens"] < doc["datasets"]["training"]["num_tokens"]


async def test_the_same_bytes_for_training_and_validation_are_accepted_with_a_warning(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make, base: str
) -> None:
    content = jsonl(*good_rows(12))
    job = await a_job(db, training_file=await upload(content), validation_file=await upload(content))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert doc["phase"] == "waiting"
    report = json.loads(await objects.read(f"org-default/proj-default/jobs/{job.id}/validation.report.json"))
    assert [(found["code"], found["severity"]) for found in report["findings"]] == [
        ("same_as_training_file", "warning")
    ]


async def test_too_many_examples_reject_a_job_where_the_operator_set_a_limit(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    job = await a_job(db, training_file=await upload(jsonl(*good_rows(13))))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator(max_examples=12))
    assert (doc["status"], doc["error"]["code"]) == ("failed", "invalid_n_examples")
    assert "at most 12" in doc["error"]["message"]


async def test_too_few_examples_reject_a_job_as_clients_know_it(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    job = await a_job(db, training_file=await upload(jsonl(*good_rows(7))))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert doc["status"] == "failed"
    assert doc["error"]["code"] == "invalid_n_examples"
    assert doc["error"]["message"] == "Training file has 7 example(s), but must have at least 10 examples"
    assert doc["error"]["param"] == "training_file"


async def test_a_row_too_long_for_the_base_rejects_a_job_and_is_named(
    db: Database, objects: ObjectStore, make_validator: Make, upload: Make, base: str
) -> None:
    rows = good_rows(12)
    rows[4] = chat_row("Tell me all.", "word " * 400)
    job = await a_job(db, training_file=await upload(jsonl(*rows)))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["error"]["code"], doc["error"]["line"]) == ("row_too_long", 5)
    rejected = next(entry["data"] for entry in doc["outbox"] if entry["type"] == "DataRejected")
    report = json.loads(await objects.read(rejected["report_key"]))
    assert [found["line"] for found in report["findings"]] == [5]


@pytest.mark.parametrize(("on_overlength", "num_examples"), [("truncate", 12), ("drop", 11)])
async def test_a_job_may_cut_or_leave_out_rows_that_are_too_long(
    db: Database, make_validator: Make, upload: Make, base: str, on_overlength: str, num_examples: int
) -> None:
    rows = good_rows(12)
    rows[4] = chat_row("Tell me all.", "word " * 400)
    asked = Hyperparameters(on_overlength=on_overlength)
    job = await a_job(db, training_file=await upload(jsonl(*rows)), hyperparameters=asked)
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["status"], doc["datasets"]["training"]["num_examples"]) == ("queued", num_examples)


async def test_a_bad_file_rejects_its_job_with_the_files_own_reason(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    job = await a_job(db, training_file=await upload(jsonl(*good_rows(12), "{")))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["error"]["code"], doc["error"]["line"], doc["error"]["param"]) == ("invalid_json", 13, "training_file")


async def test_a_deleted_file_rejects_its_job(db: Database, make_validator: Make, upload: Make, base: str) -> None:
    file_id = await upload(jsonl(*good_rows(12)))
    job = await a_job(db, training_file=file_id)
    await advance(db, Kind.FILE, file_id, f.FileDeleted(), actor=ACTOR)
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["error"]["code"], doc["error"]["param"]) == ("file_missing", "training_file")


async def test_an_unknown_base_rejects_a_job(db: Database, make_validator: Make, upload: Make, base: str) -> None:
    job = await a_job(db, model="gone", training_file=await upload(jsonl(*good_rows(12))))
    doc = await moved_on(db, "jobs", job.id, "checking", await make_validator())
    assert (doc["error"]["code"], doc["error"]["param"], doc["error"]["owner"]) == ("base_missing", "model", "operator")


async def test_a_cancelled_job_is_left_alone(db: Database, make_validator: Make, upload: Make, base: str) -> None:
    job = await a_job(db, training_file=await upload(jsonl(*good_rows(12))))
    await job.tell(f.JobCancelled(), op_id="cancel")
    validator = await make_validator()
    await validator.look()
    assert (await job.doc())["phase"] == "cancelled"


async def test_a_job_that_was_restarted_is_checked_and_accepted_again(
    db: Database, make_validator: Make, upload: Make, base: str
) -> None:
    validator = await make_validator()
    job = await a_job(db, training_file=await upload(jsonl(*good_rows(12))))
    await moved_on(db, "jobs", job.id, "checking", validator)
    assert (await job.tell(f.JobCancelled(), op_id="cancel")).applied
    assert (await job.tell(f.JobRestarted(), op_id="restart")).applied
    doc = await moved_on(db, "jobs", job.id, "checking", validator)
    assert (doc["phase"], doc["generation"]) == ("waiting", 2)
