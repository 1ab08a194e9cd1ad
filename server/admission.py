"""What a request may cost, checked before anything is computed."""

from collections.abc import Iterable

from embedmux.server.config import Limits
from embedmux.server.errors import DeadlineExceeded, EmbedmuxError, InvalidRequest, Overloaded, Unavailable

# The queue takes or refuses the texts of a request together, and they share a deadline: a client is told by the status
# of the call, which it knows to try again, and not by one error for each text.
WHOLE_REQUEST = (Overloaded, Unavailable, DeadlineExceeded)


class Admission:
    """The limits of one request."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def check_count(self, count: int, name: str, *, instead: str = "send several requests") -> None:
        """Raises InvalidRequest for none, and for more than ``max_texts``."""
        if not count:
            raise InvalidRequest(f"the request has no {name}; send at least one")
        if count > self._limits.max_texts:
            raise InvalidRequest(
                f"the request has {count} {name}, the limit is {self._limits.max_texts} (max_texts); {instead}"
            )

    def check_text(self, text: str, prompt: str = "", *, name: str = "text") -> None:
        """Raises InvalidRequest for an empty text, and for one that is over ``max_text_bytes`` with its own prompt."""
        if not text:
            raise InvalidRequest(f"the {name} is empty; send at least one character")
        # A character is 1 to 4 bytes, so most texts are settled without encoding them.
        if 4 * (len(prompt) + len(text)) > self._limits.max_text_bytes:
            num_bytes = len(prompt.encode()) + len(text.encode())
            if num_bytes > self._limits.max_text_bytes:
                raise InvalidRequest(
                    f"the {name} with its prompt has {num_bytes} bytes, the limit is {self._limits.max_text_bytes} "
                    "(max_text_bytes); split it"
                )

    def check_total(self, lengths: Iterable[int], name: str) -> None:
        """Raises InvalidRequest when all that will be read has more characters than a message may have bytes."""
        num_characters = sum(lengths)
        if num_characters > self._limits.max_message_bytes:
            raise InvalidRequest(
                f"the {name} with their prompts have {num_characters} characters, the limit is "
                f"{self._limits.max_message_bytes} (max_message_bytes); send several requests"
            )


def raise_if_whole(errors: Iterable[EmbedmuxError]) -> None:
    """Raises an error of one text that is one of the whole request."""
    for error in errors:
        if isinstance(error, WHOLE_REQUEST):
            raise error
