"""Lyrics: timed lines, their phonemes, and these as tokens on the frame axis."""
