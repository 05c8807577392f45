"""Imported last by a process that forks: what it has imported until then is no garbage of its children."""

import gc

gc.collect()
gc.freeze()
