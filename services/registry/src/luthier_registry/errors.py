"""Why a source of a base model cannot become one. Codes are stable; the README of this room explains each.

`source_missing`, `source_unknown`, `io_error`, `bundle_exists`, `bundle_damaged`, `conversion_failed`; of GGUF files
`gguf_unreadable`, `gguf_missing_metadata`, `gguf_unsupported_architecture`, `gguf_unsupported_tokenizer`,
`gguf_unsupported_quantisation`; of Hugging Face directories `base_bad_config`, `base_needs_code`,
`base_unsupported_architecture`, `base_quantised`, `base_pickled_weights`, `base_no_weights`, `base_missing_shard`,
`base_damaged_weights`, `base_no_tokenizer`, `base_bad_tokenizer`, `base_no_chat_template`, `base_untrainable`.
"""


class BaseImportError(ValueError):
    """A source cannot become a base model as it is; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
