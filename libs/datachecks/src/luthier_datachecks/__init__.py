"""Pure line checks of training files: what a row may be, and exactly where one is not.

Nothing here opens a file or counts tokens: chunks of bytes go in, rows and findings come out.
"""

from luthier_datachecks.checker import check_lines
from luthier_datachecks.codes import CODES, Code
from luthier_datachecks.findings import Finding, Limits, Row
from luthier_datachecks.report import Report, check_file

__all__ = ["CODES", "Code", "Finding", "Limits", "Report", "Row", "check_file", "check_lines"]
