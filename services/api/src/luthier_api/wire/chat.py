"""The chat completion object."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: NotRequired[str]
    choices: list[ChatChoice]
    usage: ChatUsage


def chat_completion(answers: Sequence[dict[str, Any]]) -> ChatCompletion:
    """One completion of all answers to the same messages; the prompt counts once."""
    first = answers[0]
    num_prompt = first["usage"]["prompt_tokens"]
    num_made = sum(answer["usage"]["completion_tokens"] for answer in answers)
    completion: ChatCompletion = {
        "id": first["id"],
        "object": "chat.completion",
        "created": first["created"],
        "model": first["model"],
        "choices": [_choice(index, answer["choices"][0]) for index, answer in enumerate(answers)],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_made,
            "total_tokens": num_prompt + num_made,
        },
    }
    if "system_fingerprint" in first:
        completion["system_fingerprint"] = first["system_fingerprint"]
    return completion


def _choice(index: int, choice: dict[str, Any]) -> ChatChoice:
    message: ChatMessage = {"role": "assistant", "content": choice["message"]["content"], "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice["finish_reason"]}
