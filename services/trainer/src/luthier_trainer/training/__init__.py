"""The child process that trains one run: reads `run.json`, gives progress lines and an exit code; no credentials.

The only place of the trainer that imports torch, transformers, trl and peft. Read `sft.py` first, top to bottom.
"""
