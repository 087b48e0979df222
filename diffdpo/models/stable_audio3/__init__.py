"""Stable Audio 3: the network that hides padding, its checkpoints, and the adapter that makes them a SongModel."""
