"""A tiny random Llama as a base bundle: everything a base has, a few hundred kilobytes, made in a second, no torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "You are a helpful assistant of a small shop.",
    "Where is my parcel? It left our house on Monday and arrives on Thursday.",
    "The quick brown fox jumps over the lazy dog 0123456789 times.",
    "Thank you for asking! We are open from nine to five, user and assistant alike.",
]
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY, CONTEXT = 32, 2, 4, 2, 64, 384, 256


def make_tiny_base(directory: Path, name: str = "tiny-llama", seed: int = 0) -> Path:
    """Write the bundle into `directory` (made if missing) and return it; equal seeds give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TINY_TEMPLATE)
    ids = {token: tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    _write_json(directory / "config.json", _config(ids))
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": ids["<|im_start|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|im_end|>"]},
    )
    text = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "generation_eos": ["<|im_end|>"],
        "context_length": CONTEXT,
        "variables": {},
    }
    _write_json(directory / "text.json", text)
    num_parameters = _save_weights(directory / "model.safetensors", seed)
    _write_json(directory / "bundle.json", _manifest(directory, name, num_parameters))
    return directory


def chat_row(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    """One training row."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def write_chat_file(path: Path, num_rows: int, start: int = 0) -> Path:
    """A JSONL file of chat rows of uneven length."""
    rows = [
        chat_row(f"Where is parcel {n}?", f"Parcel {n} arrives on day {n % 7}." + " Thank you." * (n % 4))
        for n in range(start, start + num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


def _config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|im_end|>"],
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": False,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def _save_weights(path: Path, seed: int) -> int:
    random = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{at}.mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
        }
    tensors = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else random.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return sum(tensor.size for tensor in tensors.values())


def _manifest(directory: Path, name: str, num_parameters: int) -> dict[str, Any]:
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(directory.iterdir())
        if path.name != "bundle.json"
    ]
    lines = sorted(f"{file['sha256']}  {file['name']}\n" for file in files)
    source = {"file": "made in a test", "bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    return {
        "format": "luthier.base-bundle/1",
        "name": name,
        "revision": source["sha256"],
        "digest": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "architecture": "LlamaForCausalLM",
        "licence": None,
        "num_parameters": num_parameters,
        "dtype": "float32",
        "context_length": CONTEXT,
        "source": source,
        "converter": "tests.builders.bases/1",
        "files": files,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
