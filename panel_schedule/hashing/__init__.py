"""What makes two calls, or two functions, the same."""
