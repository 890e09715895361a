"""The `luthier` command: the API from a terminal, over HTTP only, through the openai package."""
