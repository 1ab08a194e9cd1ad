"""Task names and their aliases, as Jina v5 and its users write them."""

from embedmux.server.records import Role

# alias -> (task, the role it implies)
ALIASES: dict[str, tuple[str, Role | None]] = {
    "similarity": ("text-matching", None),
    "semantic_similarity": ("text-matching", None),
    "text_matching": ("text-matching", None),
    "retrieval_query": ("retrieval", Role.QUERY),
    "retrieval.query": ("retrieval", Role.QUERY),
    "retrieval_document": ("retrieval", Role.DOCUMENT),
    "retrieval.passage": ("retrieval", Role.DOCUMENT),
}


def aliases_of(task: str) -> list[str]:
    """Every other name a client may use for ``task``."""
    return [alias for alias, (name, _) in ALIASES.items() if name == task]
