"""A model folder's JSON -> its contract: which family it is of, and how it must be served. Without torch."""
