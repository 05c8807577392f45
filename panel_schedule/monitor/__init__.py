"""The page of an operator: what is stale, or fails, and why; and what may be done about it."""
