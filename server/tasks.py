"""Task names and their aliases, as Jina v5 and its users write them."""

from embedmux.server.records import Role

RETRIEVAL = "retrieval"  # the one task whose queries and documents are unlike
TASKS = (RETRIEVAL, "text-matching", "classification", "clustering")

# alias -> (task, the role it implies)
ALIASES: dict[str, tuple[str, Role | None]] = {
    "similarity": ("text-matching", None),
    "semantic_similarity": ("text-matching", None),
    "text_matching": ("text-matching", None),
    "sts": ("text-matching", None),
    "separation": ("clustering", None),
    "retrieval_query": (RETRIEVAL, Role.QUERY),
    "retrieval.query": (RETRIEVAL, Role.QUERY),
    "retrieval_document": (RETRIEVAL, Role.DOCUMENT),
    "retrieval.passage": (RETRIEVAL, Role.DOCUMENT),
}


def names_of(task: str, role: Role | None) -> list[str]:
    """What a task's prompt may be called: that of one side, or for None the one of both."""
    own = {None: [task], Role.QUERY: [f"{task}.query"], Role.DOCUMENT: [f"{task}.document", f"{task}.passage"]}[role]
    return own + [alias for alias, meant in ALIASES.items() if meant == (task, role) and alias not in own]


def aliases_of(task: str) -> list[str]:
    """Every other name a client may use for ``task``."""
    return [alias for alias, (name, _) in ALIASES.items() if name == task]
