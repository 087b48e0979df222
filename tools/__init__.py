"""Launchers, benches, parity checks, and how the tiny model was made."""
