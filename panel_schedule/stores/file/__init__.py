"""The store of all processes on one machine."""
