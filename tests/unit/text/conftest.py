"""Tiny tokenizers and the shapes of real templates, as bundles on disk and as transformers tokenizers."""

# ruff: noqa: E501 (templates stand as their models ship them)

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier_text import TEMPLATE_FILE, TEXT_FILE, TOKENIZER_FILE, TextBundle, TextConfig

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA = """{{- bos_token }}
{%- if strftime_now is defined %}{% set date = strftime_now("%d %b %Y") %}{% else %}{% set date = "26 Jul 2024" %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("only single tool-calls") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if not reasoning and '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- set tool_call = tool_call.function or tool_call %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

MACRO = (
    "{% macro turn(m) %}{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}{% endmacro %}"
    "{% set body %}{% for i, m in enum(messages) if false %}{% endfor %}{% for m in messages if m.content %}"
    "{% if m.role == 'system' %}{{ turn(m) }}\n{% continue %}{% endif %}"
    "{{ turn(m) ~ eos_token }}\n{% endfor %}{% endset %}{{ body }}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
).replace("{% for i, m in enum(messages) if false %}{% endfor %}", "")

TEMPLATES = {"smollm2": SMOLLM2, "llama": LLAMA, "mistral": MISTRAL, "qwen": QWEN, "phi": PHI, "macro": MACRO}
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<s>", "</s>", "[INST]", "[/INST]", "<|end|>",
]  # fmt: skip
NOT_SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
NOT_SPECIAL += ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "    "]
ENDS = {"llama": "<|eot_id|>", "mistral": "</s>", "phi": "<|end|>"}


@dataclass(frozen=True)
class Pair:
    """A bundle of ours and the transformers tokenizer for the same files."""

    name: str
    bundle: TextBundle
    theirs: Any
    directory: Path
    ends: frozenset[str]


def _train(tokenizer: Tokenizer, alphabet: list[str], size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    text = "the user says hello and the assistant says hello there, system: you are a helpful assistant named hello. "
    tokenizer.train_from_iterator([text * 3, "\n\n  x\n\n"], trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    return tokenizer


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Digits apart, then byte-level BPE, as SmolLM2 has it; with a post-processor that trims offsets."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return _train(tokenizer, pre_tokenizers.ByteLevel.alphabet(), 420)


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    """SentencePiece-like: a space added at the start, and bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("\t"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _train(tokenizer, ["\n", "▁", *map(chr, range(33, 127))], 300)
    spec = json.loads(tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocab[token] = len(vocab) + 1000
    return Tokenizer.from_str(json.dumps(spec))


@pytest.fixture(scope="session")
def make_pair(tmp_path_factory: pytest.TempPathFactory, byte_level: Tokenizer) -> Callable[..., Pair]:
    """Build a pair for a template (by name, or its source) and a tokenizer."""

    def make(name: str, tokenizer: Tokenizer = byte_level, variables: dict[str, Any] | None = None) -> Pair:
        directory = tmp_path_factory.mktemp("bundle")
        template = TEMPLATES.get(name, name)
        ends = [ENDS.get(name, "<|im_end|>")]
        eos = "</s>" if name == "mistral" else "<|endoftext|>"
        tokens = {"bos_token": "<s>", "eos_token": eos, "pad_token": "<|endoftext|>"}
        config = TextConfig(**tokens, generation_eos=ends, context_length=8192, variables=variables or {})
        (directory / TOKENIZER_FILE).write_text(tokenizer.to_str())
        (directory / TEMPLATE_FILE).write_text(template)
        (directory / TEXT_FILE).write_text(config.model_dump_json())
        theirs = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
            chat_template=template,
            clean_up_tokenization_spaces=False,
            **tokens,
        )
        return Pair(name, TextBundle.load(directory), theirs, directory, frozenset([*ends, eos]))

    return make


@pytest.fixture(scope="session", params=TEMPLATES)
def pair(request: pytest.FixtureRequest, make_pair: Callable[..., Pair]) -> Pair:
    """Every template in turn, on the byte-level tokenizer."""
    return make_pair(request.param, variables={"strftime_now": "2026-11-21"} if request.param == "llama" else {})


@pytest.fixture(scope="session")
def smollm2(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair("smollm2")


@pytest.fixture(scope="session")
def qwen(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair("qwen")


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "e.g. “Zürich” <b>"}}}
    return [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]


@pytest.fixture(scope="session")
def chats() -> list[list[dict[str, Any]]]:
    """Conversations that most templates can print."""
    texts = [
        "hello",
        "  two  spaces 12 345",
        "é🎉👩‍👩‍👧 日本語",
        "a\n\n\nb\t",
        "",
        " ",
        "x" * 50,
        "{{ 7 * 7 }} {% raw %}",
        "    code",
    ]
    made: list[list[dict[str, Any]]] = []
    for number, text in enumerate(texts):
        user, reply = {"role": "user", "content": text}, {"role": "assistant", "content": texts[-number] + "."}
        made += [
            [user, reply],
            [user, reply, {"role": "user", "content": "and?"}, {"role": "assistant", "content": f"so {text} it is"}],
            [{"role": "system", "content": text}, user, reply],
            [user],
            [user, {"role": "assistant", "content": "fine", "name": None, "reasoning": f"hm {text}"}],
        ]
    return made
