"""Comparison with numbers of original implementations."""
