"""A listening test in the browser: blind, loudness-matched songs to votes and opinions of listeners."""
