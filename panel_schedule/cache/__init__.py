"""Memoized functions: their answers, and who computes them."""
