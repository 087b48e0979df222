"""Networks and measures that turn audio or text into vectors, shared by models and scorers."""
