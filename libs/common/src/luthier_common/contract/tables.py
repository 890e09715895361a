"""The contract for people: Markdown tables and the picture of a job's life, made from the code's own tables. Pure."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from luthier_common.contract.asyncapi import sentence_of
from luthier_common.contract.events import Fact
from luthier_common.contract.lifecycle import JOB, LIFECYCLES, NEW, Lifecycle, Row
from luthier_common.contract.reasons import FailureReason
from luthier_common.contract.topics import ALL_TOPICS, DAY_MS

T = TypeVar("T")


def topics_table() -> str:
    """Every topic and how it is set up."""
    rows = [
        (
            f"`{topic.name}`",
            str(topic.num_partitions),
            f"{topic.retention_ms // DAY_MS} days",
            f"{topic.max_message_bytes // 1024} KiB",
            topic.purpose,
        )
        for topic in ALL_TOPICS
    ]
    return _table(("topic", "partitions", "retention", "largest message", "purpose"), rows)


def facts_table() -> str:
    """Every fact, who states it, and where it leads."""
    in_order = _once(row.fact for life in LIFECYCLES.values() for row in life.rows)
    rows = [
        (f"`{shape.__name__}`", str(shape.kind), _rooms(shape), sentence_of(shape), _targets(shape))
        for shape in in_order
    ]
    return _table(("fact", "thing", "stated by", "what happened", "leads to"), rows)


def reasons_table() -> str:
    """Every reason for a failure, and whose move it is."""
    return _table(
        ("code", "owner", "sentence"),
        [(f"`{reason.value}`", reason.owner, reason.sentence) for reason in FailureReason],
    )


def lives() -> str:
    """The four lifecycle tables: phases, then rows."""
    return "\n\n".join(_life(life) for life in LIFECYCLES.values())


def job_picture() -> str:
    """The life of a job as a mermaid state diagram; facts that change no phase are left out."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for phase in JOB.phases:
        label = phase.name if phase.name == phase.status else f"{phase.name} ({phase.status})"
        lines.append(f"    {phase.name}: {label}")
    edges: dict[tuple[str, str], list[str]] = {}
    for row in JOB.rows:
        for source in row.sources:
            if row.target is not None:
                start = "[*]" if source == NEW else source
                facts = edges.setdefault((start, row.target), [])
                if row.fact.__name__ not in facts:
                    facts.append(row.fact.__name__)
    lines += [f"    {start} --> {end}: {', '.join(facts)}" for (start, end), facts in edges.items()]
    lines += [f"    {phase.name} --> [*]" for phase in JOB.phases if phase.final]
    return "\n".join([*lines, "```"])


def _life(life: Lifecycle) -> str:
    phases = _table(
        ("phase", "status", "meaning"),
        [(f"`{p.name}`", f"`{p.status}`", p.sentence + (" (final)" if p.final else "")) for p in life.phases],
    )
    rows = _table(
        ("from", "fact", "to", "stated by"),
        [(", ".join(f"`{source}`" for source in row.sources), _fact(row), _target(row), row.room) for row in life.rows],
    )
    return f"### The life of a {life.kind}\n\n{phases}\n\n{rows}"


def _fact(row: Row) -> str:
    when = ", ".join(f"{name}: {str(value).lower()}" for name, value in row.when.items())
    return f"`{row.fact.__name__}`" + (f" ({when})" if when else "")


def _target(row: Row) -> str:
    if row.target is None:
        return "stays" + (" (nothing follows)" if row.closes else "")
    return f"`{row.target}`" + (" (reopens)" if row.reopens else "")


def _rows_of(shape: type[Fact]) -> list[Row]:
    return [row for row in LIFECYCLES[shape.kind].rows if row.fact is shape]


def _rooms(shape: type[Fact]) -> str:
    return ", ".join(_once(room for row in _rows_of(shape) for room in row.room.split(", ")))


def _targets(shape: type[Fact]) -> str:
    return ", ".join(_once(_target(row) for row in _rows_of(shape)))


def _once(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
