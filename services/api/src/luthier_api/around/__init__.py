"""Around every request, beside its key: how many there may be, what is recorded, and what a repetition gets."""
