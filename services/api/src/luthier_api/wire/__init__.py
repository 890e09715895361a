"""How stored documents look to clients. Pure functions from documents to JSON objects."""
