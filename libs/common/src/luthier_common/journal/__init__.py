"""The journal: `advance` moves, `relay` tells, `projector` keeps the list, `auditor` looks for what was missed,
`replay` fills list or topics from the other."""
