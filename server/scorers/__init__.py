"""How documents are scored against a query: each with it, by their token vectors, or all in one prompt."""
