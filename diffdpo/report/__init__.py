"""HTML pages to look at and listen to: the report of a comparison, and the gallery of a samples folder."""
