"""Background functions: the queue of their runs, and what the other processes do with them."""
