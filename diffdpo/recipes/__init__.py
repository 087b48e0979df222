"""One `run(cfg)` a verb: wiring only. Files in, files out; what is done already is skipped."""
