"""The store: one folder with songs, their features, votes and opinions of many studies and data sets, where each
came from, and what was forgotten."""
