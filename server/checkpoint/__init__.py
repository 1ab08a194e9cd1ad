"""A model folder's JSON -> its contract: which family it is of, and how it must be served. Without torch."""

from embedmux.server.checkpoint.read import Reading, read, read_contract

__all__ = ["Reading", "read", "read_contract"]
