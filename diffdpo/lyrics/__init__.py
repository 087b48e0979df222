"""Lyrics: timed lines, their phonemes, and tokens on the frame axis."""
