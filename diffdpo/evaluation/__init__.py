"""Proof that songs got better: paired effects, golden numbers, the report."""
