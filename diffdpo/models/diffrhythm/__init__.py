"""DiffRhythm v1 and v1.2: network, lyrics, and the adapter that makes them a SongModel."""
