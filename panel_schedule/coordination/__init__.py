"""What may happen to a record, as pure functions: no clock, no lock, no I/O."""
