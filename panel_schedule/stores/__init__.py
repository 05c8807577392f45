"""Where values, claims and run records live."""
