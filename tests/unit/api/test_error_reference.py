"""Every code that an error can carry is in the reference."""

from pathlib import Path

from luthier_api.errors import ErrorCode
from luthier_api.reference import documents
from luthier_common.contract.reasons import FailureReason
from luthier_datachecks import CODES


def test_a_code_of_a_request_a_job_or_a_row_can_be_looked_up() -> None:
    page = documents(Path())[Path("docs/errors.md")]
    codes = [*(error.code for error in ErrorCode), *(reason.value for reason in FailureReason), *CODES]
    assert [code for code in codes if f"| `{code}` |" not in page] == []
    assert "(#of-a-row)" in page
    assert "\n## Of a row\n" in page
