"""Comparison of this project with numbers measured on original implementations."""
