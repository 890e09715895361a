"""Rows to token ids in one place, without torch: what validator, trainer and inference all see.

A `TextBundle` is a directory with `tokenizer.json`, `chat_template.jinja` and `text.json` (`TextConfig`). It renders
chats exactly as transformers does, keeps control tokens in users' text from becoming control ids, and says which
tokens of a training row are learnt.
"""

from luthier_text.bundle import TextBundle
from luthier_text.config import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextConfig
from luthier_text.errors import Refused, TextError
from luthier_text.labels import IGNORED_LABEL, TrainRow
from luthier_text.stream import StreamDecoder

__all__ = [
    "IGNORED_LABEL",
    "TEMPLATE_FILE",
    "TEXT_FILE",
    "TOKENIZER_FILE",
    "Refused",
    "StreamDecoder",
    "TextBundle",
    "TextConfig",
    "TextError",
    "TrainRow",
]
