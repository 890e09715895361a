"""The built-in generation engine: one base model in memory, adapters chosen per row, rows of all requests decoded
together. The only package here that imports torch; ids come in, text goes out, messages are never seen."""
