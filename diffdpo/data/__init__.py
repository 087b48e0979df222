"""Files in, files out: prompts, tables, latents, datasets, pairs."""
