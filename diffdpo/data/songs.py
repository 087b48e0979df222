"""The songs table: one row a song that `prepare` encoded, or could not."""

TABLE = "songs.parquet"
KEY = ("id",)
