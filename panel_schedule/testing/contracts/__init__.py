"""What the parts that can be replaced promise, as tests."""
