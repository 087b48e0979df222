"""Launchers, benches, parity checks, and the training of the tiny model."""
