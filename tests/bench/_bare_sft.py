"""The least script that makes one LoRA step on a base bundle with trl; prints how long each part took, as JSON.

`python _bare_sft.py BUNDLE_DIR ROWS.jsonl NUM_THREADS`
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BEGAN_AT = time.perf_counter()

import torch  # noqa: E402 - importing is part of what is measured
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

BATCH = 4


def main(bundle: Path, rows: Path, num_threads: int) -> dict[str, float]:
    imported_at = time.perf_counter()
    torch.set_num_threads(num_threads)
    end = json.loads((bundle / "text.json").read_bytes())["eos_token"]
    file = str(bundle / "tokenizer.json")
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, pad_token=end)  # type: ignore[no-untyped-call]
    tokenizer.chat_template = (bundle / "chat_template.jinja").read_text()
    messages = [json.loads(line)["messages"] for line in rows.read_text().splitlines()][:BATCH]
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in messages]
    model = AutoModelForCausalLM.from_pretrained(
        str(bundle), dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True, local_files_only=True
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=BATCH, use_cpu=True, bf16=False,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            # The old name, on by default, costs time.
            gradient_checkpointing=None,  # type: ignore[arg-type]
            activation_checkpointing=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        loaded_at = time.perf_counter()
        trainer.train()
    stepped_at = time.perf_counter()
    return {"imports_s": imported_at - BEGAN_AT, "load_s": loaded_at - imported_at, "step_s": stepped_at - loaded_at}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
