"""The public API: thin dialects over services over one store. It states what users ask for and shows what happened.

Start at `dialects/openai/jobs.py` (the routes), then `services/jobs.py` (what they do) and `wire/` (what they answer).
"""
