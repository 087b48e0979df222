"""Training: from a batch to an optimiser step, exact in any layout."""
