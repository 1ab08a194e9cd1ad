"""Texts -> token ids: the only room that knows tokenizers."""
