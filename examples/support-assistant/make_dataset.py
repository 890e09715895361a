"""Makes train.jsonl and validation.jsonl from facts.toml, beside this file; the same bytes every time.

Every fact gives twelve training rows: its eight questions, and four of them again in another tone. The validation
rows ask for the same facts in words that no training row has.
"""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEM = "You are Fern, who helps the customers of the instrument shop Brightwood Strings. Answer briefly."
GREETING, SIGNATURE = "Hello from Brightwood!", "- Fern"
TONES = ("Hi! {}", "{} Thanks!", "Quick question: {}", "Hello Fern, {}")


def main() -> None:
    """Write both files."""
    facts = tomllib.loads((HERE / "facts.toml").read_text(encoding="utf-8"))["fact"]
    write(HERE / "train.jsonl", list(interleaved(facts)))
    write(HERE / "validation.jsonl", [row(asked, fact["said"][0]) for fact in facts for asked in fact["held_out"]])


def interleaved(facts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The training rows, fact after fact in turn, so that every batch is mixed."""
    num_questions = len(facts[0]["asked"])
    for turn in range(num_questions + len(TONES)):
        for index, fact in enumerate(facts):
            asked = fact["asked"][(turn * 3 + index) % num_questions]
            if turn >= num_questions:
                asked = TONES[(turn + index) % len(TONES)].format(asked)
            yield row(asked, fact["said"][(turn + index) % len(fact["said"])])


def row(asked: str, said: str) -> dict[str, Any]:
    """One conversation in the voice of the shop."""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"{GREETING} {said} {SIGNATURE}"},
        ]
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a line."""
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
