"""ACE-Step 1.5: a flow transformer over packed lyrics, timbre and text, at 25 frames a second of 48 kHz stereo."""
