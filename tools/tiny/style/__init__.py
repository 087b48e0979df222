"""Training data of the tiny style encoder."""
