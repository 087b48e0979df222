"""Codecs: song audio to latents and back."""
