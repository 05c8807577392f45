"""What all kinds of runs are done with."""
