"""What every room shares: `contract` (pure shapes and tables), `journal` (moves a thing and tells), `kit` (pipes)."""
