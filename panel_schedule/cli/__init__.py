"""The command line: a file with tasks, and a store that is in use."""
