"""The trainer: one per node; turns a placed run into checkpoints and an adapter.

The service never imports torch: it starts one child process per run (`python -m luthier_trainer.training RUN_DIR`),
reads its progress lines (`protocol.py`) and is alone with credentials. Only `luthier_trainer.training` trains.
"""
