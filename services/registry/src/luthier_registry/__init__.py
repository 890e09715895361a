"""The registry: base models, names and versions, lineage, and the permanent place of models.

A base model is a content-addressed bundle (weights, tokenizer, template) that is made once, by a child process; a
tuned model is an artifact that a serving engine has verified. Nothing here imports torch.
"""
