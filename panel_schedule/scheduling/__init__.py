"""Tasks: slots, runs, and what the other processes do with them."""
