"""Datasets: tables and latents on disk to training examples and batches."""
