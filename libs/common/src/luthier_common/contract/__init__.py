"""The public contract: facts, life tables, topics, failure reasons. Pydantic and the standard library only.

Start at `lifecycle.py` (a whole life on one screen), then `events.py` (who says what).
"""
