"""diffdpo: preference optimisation for full-length-song diffusion models."""

__version__ = "0.1.0"
