"""Sampling: from a request to latents and sound."""
