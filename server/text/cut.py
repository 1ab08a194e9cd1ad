"""Where the tokens of a text lie between those of its prompt and its suffix."""

from collections.abc import Sequence

from embedmux.server.text.frames import Frame


def text_run(offsets: Sequence[tuple[int, int]], frame: Frame) -> tuple[int, int]:
    """The first token of ``frame.text`` and the one behind its last, among those of the rendered frame.

    ``offsets``: (start, end) in characters of each token, special tokens left out. White space at the prompt's end that
    the tokenizer joins to the text's first word goes with that word; any other token that holds a character of the
    prompt or of the suffix is not the text's.
    """
    prompt_end, text_end = len(frame.prefix), len(frame.prefix) + len(frame.text)
    joins_from = len(frame.prefix.rstrip())
    first = next(
        (at for at, (start, end) in enumerate(offsets) if start >= joins_from and end > prompt_end), len(offsets)
    )
    last = next((at for at in range(len(offsets) - 1, -1, -1) if offsets[at][1] <= text_end), -1)
    return first, max(first, last + 1)
