"""What a user is told about a training file, line by line."""

import json
import tracemalloc
from typing import Any

import pytest

from luthier_datachecks import CODES, Finding, Limits, Row, check_file, check_lines

ONE = Limits(min_examples=1)
USER: dict[str, Any] = {"role": "user", "content": "Do you ship to Norway?"}
REPLY: dict[str, Any] = {"role": "assistant", "content": "Yes, we do."}
CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"order": 7}'}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}


def line(*messages: Any, **others: Any) -> bytes:
    return json.dumps({"messages": list(messages), **others}).encode() + b"\n"


GOOD = line(USER, REPLY)


def findings(*lines: bytes, limits: Limits = ONE) -> list[Finding]:
    return [found for found in check_lines([b"".join(lines)], limits) if isinstance(found, Finding)]


def said(*lines: bytes, limits: Limits = ONE) -> list[tuple[int | None, str, str]]:
    return [(found.line, found.code, found.path) for found in findings(*lines, limits=limits)]


@pytest.mark.parametrize(
    "good",
    [
        GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        line({"role": "system", "content": 'Be kind: "always".'}, USER, REPLY, USER, REPLY),
        line({"role": "developer", "content": "Be kind."}, USER | {"name": "Ada"}, REPLY | {"weight": 1}),
        line(USER, REPLY | {"weight": 0}, USER, REPLY),
        line(USER | {"content": [{"type": "text", "text": "Hello"}]}, REPLY),
        line(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, tools=[TOOL]),
        line(
            USER,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": ""},
            REPLY,
        ),
        line(USER, {"role": "assistant", "content": None, "refusal": "I may not."}),
        line(USER, REPLY | {"content": [{"type": "text", "text": ""}, {"type": "text", "text": "Yes."}]}),
        line(
            USER,
            {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": ""}]},
            REPLY,
        ),
        line(USER, REPLY | {"reasoning_content": "It is said on the page."}, parallel_tool_calls=False),
        line(USER, REPLY | {"content": '\U0001f3bb role: "content":'}),
    ],
)
def test_a_good_row_is_a_row(good: bytes) -> None:
    found = list(check_lines([good], ONE))
    assert [type(item) for item in found] == [Row]
    assert isinstance(found[0], Row)
    assert json.loads(found[0].data)["messages"][0]["role"] == found[0].roles[0]


@pytest.mark.parametrize(
    ("bad", "code", "path"),
    [
        (b"[1, 2]\n", "data_type", ""),
        (b'{"messages": [}\n', "invalid_json", ""),
        (GOOD.strip() + b"}\n", "invalid_json", ""),
        (GOOD.replace(b"Norway", b"Nor\xffway"), "invalid_utf8", ""),
        (GOOD.replace(b"Norway", b"Nor\x00way"), "invalid_json", ""),
        (GOOD.replace(b"Norway", b"Nor\\u0000way"), "nul_character", "messages[0].content"),
        (GOOD.replace(b"Norway", b"Nor\\ud800way"), "lone_surrogate", "messages[0].content"),
        (GOOD.replace(b'"role": "user"', b'"role": "user", "role": "user"'), "duplicate_key", "messages[0].role"),
        (GOOD.replace(b'"role": "user"', b'"role": "user", "\\u0072ole": "user"'), "duplicate_key", "messages[0].role"),
        (GOOD.replace(b'"messages"', b'"messages": [], "messages"'), "duplicate_key", "messages"),
        (line(USER, REPLY | {"weight": float("nan")}), "not_a_number", "messages[1].weight"),
        (line(USER, REPLY, tools=[TOOL | {"x": 10**30}]), "not_a_number", "tools[0].x"),
        (b'{"messages": ' + b"[" * 64 + b"]" * 64 + b"}\n", "too_deep", ""),
        (line(USER, REPLY, tools=[{str(n): n for n in range(10_001)}]), "too_many_keys", "tools[0]"),
        (b"{}\n", "missing_messages_list", "messages"),
        (b'{"messages": []}\n', "empty_messages_list", "messages"),
        (line(USER, "hello", REPLY), "message_not_object", "messages[1]"),
        (line({"content": "x"}, REPLY), "message_missing_key", "messages[0].role"),
        (line(USER, REPLY | {"role": "human"}, REPLY), "unrecognized_role", "messages[1].role"),
        (line(USER, {"role": "function", "name": "f", "content": "x"}, REPLY), "legacy_functions", "messages[1]"),
        (line(USER, REPLY, functions=[{"name": "f"}]), "legacy_functions", "functions"),
        (line(USER | {"mood": "sad"}, REPLY), "message_unrecognized_key", "messages[0].mood"),
        (line({"role": "user"}, REPLY), "missing_content", "messages[0].content"),
        (line(USER, REPLY | {"content": None}), "missing_content", "messages[1].content"),
        (line(USER, REPLY | {"content": ""}), "missing_content", "messages[1].content"),
        (line(USER, REPLY | {"content": [{"type": "text", "text": ""}] * 2}), "missing_content", "messages[1].content"),
        (line(USER, REPLY | {"content": [{"type": "text"}]}), "invalid_type", "messages[1].content[0].text"),
        (line(USER | {"content": 5}, REPLY), "invalid_type", "messages[0].content"),
        (
            line(USER | {"content": [{"type": "image_url"}]}, REPLY),
            "unsupported_content_part",
            "messages[0].content[0]",
        ),
        (line(USER | {"weight": 1}, REPLY), "weight_not_allowed", "messages[0].weight"),
        (line(USER, REPLY | {"weight": 0.5}), "invalid_weight", "messages[1].weight"),
        (line(USER, REPLY | {"weight": True}), "invalid_weight", "messages[1].weight"),
        (line(USER, REPLY | {"weight": 0}), "nothing_to_train", "messages"),
        (line(USER), "example_missing_assistant_message", "messages"),
        (
            line(USER, REPLY | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {}}}]}),
            "tool_arguments_not_string",
            "messages[1].tool_calls[0].function.arguments",
        ),
        (line(USER, REPLY | {"tool_calls": [{"id": "c1"}]}), "invalid_tool_call", "messages[1].tool_calls[0]"),
        (
            line(USER, {"role": "tool", "tool_call_id": "c9", "content": "7"}, REPLY),
            "unknown_tool_call_id",
            "messages[1].tool_call_id",
        ),
        (line(USER, REPLY, tools=[]), "invalid_tool", "tools"),
        (line(USER, REPLY, parallel_tool_calls="yes"), "invalid_type", "parallel_tool_calls"),
    ],
)
def test_a_bad_row_is_named_with_line_path_and_code(bad: bytes, code: str, path: str) -> None:
    assert said(GOOD, bad, GOOD) == [(2, code, path)]
    assert CODES[code].severity == "error"


@pytest.mark.parametrize(
    ("doubtful", "code", "path"),
    [
        (line(USER, REPLY, id=7), "unrecognized_key", "id"),
        (line(USER, REPLY, USER), "last_message_not_assistant", "messages[2]"),
        (line({"role": "system", "content": ""}, USER, REPLY), "empty_content", "messages[0].content"),
        (line(USER | {"content": [{"type": "text", "text": ""}]}, REPLY), "empty_content", "messages[0].content"),
        (
            line(USER, {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "x"}}]}),
            "tool_arguments_not_json",
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_doubtful_row_is_warned_about_and_used(doubtful: bytes, code: str, path: str) -> None:
    report = check_file([GOOD, doubtful], ONE)
    assert [(found.line, found.code, found.path) for found in report.findings] == [(2, code, path)]
    assert report.is_valid
    assert report.num_examples == 2


def test_every_bad_line_is_reported_and_no_content_is_repeated() -> None:
    secret = line(USER | {"content": ["sesame"], "open sesame": 1}, REPLY | {"role": "sesame"})
    found = findings(GOOD, secret, b'{"sesame"\n', GOOD, secret)
    assert sorted({finding.line for finding in found if finding.line}) == [2, 3, 5]
    assert not any("sesame" in finding.message + finding.path for finding in found)


def test_a_bom_is_stripped_and_offsets_count_it() -> None:
    found = findings(b"\xef\xbb\xbf" + GOOD, b"{}\n")
    assert [(finding.line, finding.byte_offset) for finding in found] == [(2, 3 + len(GOOD))]


def test_a_bom_of_its_own_line_is_not_stripped_later() -> None:
    assert said(GOOD, b"\xef\xbb\xbf" + GOOD) == [(2, "invalid_json", "")]


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"\x1f\x8b\x08\x00", "compressed_file"),
        (b"PK\x03\x04\x14", "compressed_file"),
        (b"PAR1", "unsupported_file_type"),
        (b"\xff\xfe{\x00", "unsupported_file_type"),
    ],
)
def test_a_file_that_is_no_text_gives_one_finding(head: bytes, code: str) -> None:
    assert [found.code for found in check_lines([head[:1], head[1:], b"\n" * 50])] == [code]  # type: ignore[union-attr]


def test_blank_lines_at_the_end_are_fine_and_between_rows_warned_about_once() -> None:
    assert said(GOOD, b"\n \r\n\n") == []
    found = findings(GOOD, b"\n\n\n", GOOD)
    assert [(finding.line, finding.code, finding.severity) for finding in found] == [(2, "blank_line", "warning")]
    assert "3" in found[0].message


def test_too_few_examples_say_how_many_there_are() -> None:
    found = findings(*[GOOD] * 7, limits=Limits())
    assert [finding.message for finding in found] == [
        "Training file has 7 example(s), but must have at least 10 examples"
    ]
    assert findings(*[GOOD] * 10, limits=Limits()) == []
    assert [finding.code for finding in findings(b"", limits=Limits())] == ["invalid_n_examples"]


def test_a_bad_row_still_counts_as_an_example() -> None:
    assert [finding.code for finding in findings(*[GOOD] * 9, b"{}\n", limits=Limits())] == ["missing_messages_list"]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 10_000])
@pytest.mark.parametrize("max_line_bytes", [100, 2 << 20])
def test_a_long_line_is_named_and_the_next_one_is_read(chunk_bytes: int, max_line_bytes: int) -> None:
    data = GOOD + line(USER, REPLY | {"content": "x" * 4_000}) + b"{}\n" + GOOD.strip()
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    report = check_file(chunks, Limits(min_examples=1, max_line_bytes=max_line_bytes + len(GOOD)))
    expected = [(2, "line_too_long"), (3, "missing_messages_list")]
    assert [(found.line, found.code) for found in report.findings] == expected[max_line_bytes > 4_000 :]
    assert report.num_lines == 4


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    chunk = b"x" * (1 << 20)
    tracemalloc.start()
    report = check_file((chunk for _ in range(64)), Limits(min_examples=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [found.code for found in report.findings] == ["line_too_long"]
    assert peak < 24 << 20


def test_hostile_quotes_take_linear_time() -> None:
    hostile = b'{"a": ' + b"[" * 80 + b'"' + b'\\"' * 500_000 + b"\n"
    assert [found.line for found in findings(hostile)] == [1]


def test_the_report_counts_everything_and_keeps_the_first_findings() -> None:
    report = check_file([GOOD * 3, b"{}\n" * 1_500, line(USER, REPLY, id=1)], ONE)
    assert (report.num_lines, report.num_examples, report.num_bad_lines) == (1_504, 4, 1_500)
    assert (report.num_errors, report.num_warnings) == (1_500, 1)
    assert report.counts == {"missing_messages_list": 1_500, "unrecognized_key": 1}
    assert report.roles == {"assistant": 4, "user": 4}
    assert len(report.findings) == 1_000
    assert not report.is_valid
    assert not report.is_complete


def test_no_number_of_warnings_hides_a_bad_line() -> None:
    report = check_file([line(USER, REPLY, id=1) * 1_500, b"{\n"], ONE)
    assert not report.is_valid
    assert (report.findings[-1].line, report.findings[-1].code) == (1_501, "invalid_json")
    assert (len(report.findings), report.num_left_out) == (1_000, 501)


def test_no_number_of_warnings_hides_what_is_wrong_with_their_own_line() -> None:
    unknown = {f"key{number}": 1 for number in range(1_500)}
    found = findings(json.dumps(unknown).encode() + b"\n", line(USER, {"role": "wizard"}, **unknown))
    assert [(each.line, each.code) for each in found if each.severity == "error"] == [
        (1, "missing_messages_list"),
        (2, "unrecognized_role"),
        (2, "example_missing_assistant_message"),
    ]
    assert len(found) == 40


def test_the_path_of_a_finding_is_cut_where_it_is_very_long() -> None:
    deep: Any = float("nan")
    for _ in range(50):
        deep = {"a_key_with_many_letters": deep}
    (found,) = findings(line(USER, REPLY, metadata=deep))
    assert (found.code, len(found.path)) == ("not_a_number", 200)


def test_every_code_has_a_sentence() -> None:
    assert all(code.sentence.endswith(".") for code in CODES.values())
