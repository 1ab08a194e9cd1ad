"""What a batch costs: seconds = a + b · tokens + c · sum of squared lengths, fitted to the batches that were run.

``a`` is what every batch costs, ``b`` the linears, ``c`` attention. Batches are kept by size, some of each, since a
server under load runs batches of one size for hours, and from one size alone nobody can tell ``a`` from ``b``.
"""

from __future__ import annotations

from collections import deque

FIRST_GUESS = (1e-3, 1e-4, 0.0)  # 10,000 tokens/s, until batches were run
KEPT = 12  # batches of each size; sizes are powers of two
FIT_EVERY = 4  # batches
OUTLIER = 4.0  # a batch so many times slower than predicted was interrupted by something else
ERROR_MEMORY = 0.05  # weight of the newest batch in ``error``
MOST_CHANGE = 4.0  # of what tokens cost, from one fit to the next: what waits was counted with the last one
LEAST_OF_TOKENS = 0.02  # of the fixed cost: what the tokens of the largest batch take at least
LEAST_GAIN = 1e-6  # in the mean squared relative error, so that rounding does not choose between terms that are alike


class CostModel:
    """Least squares of relative errors, with coefficients that are not negative. Not thread-safe."""

    def __init__(self) -> None:
        self.coefficients = FIRST_GUESS
        self.error = 0.0  # a batch's |predicted - actual| / actual, on average of late
        self._kept: dict[int, deque[tuple[int, int, float]]] = {}
        self._num_batches = 0

    @property
    def is_known(self) -> bool:
        """Whether a batch was run, so that this is more than a guess."""
        return self._num_batches > 0

    def batch(self, num_tokens: int, num_squares: int) -> float:
        """Seconds of a batch with so many tokens, whose lengths squared add up to ``num_squares``."""
        a, b, c = self.coefficients
        return a + b * num_tokens + c * num_squares

    def text(self, num_tokens: int) -> float:
        """Seconds that one text adds to a batch."""
        _, b, c = self.coefficients
        return b * num_tokens + c * num_tokens * num_tokens

    def observe(self, num_tokens: int, num_squares: int, seconds: float) -> None:
        """One batch that was run."""
        predicted = self.batch(num_tokens, num_squares)
        size = num_tokens.bit_length()
        if size in self._kept:  # else a first batch of this size, and the prediction a guess
            self.error += ERROR_MEMORY * (min(1.0, abs(predicted - seconds) / seconds) - self.error)
            seconds = min(seconds, OUTLIER * predicted)
        self._kept.setdefault(size, deque(maxlen=KEPT)).append((num_tokens, num_squares, seconds))
        self._num_batches += 1
        if self._num_batches <= FIT_EVERY or self._num_batches % FIT_EVERY == 0:
            a, b, c = _fit([batch for kept in self._kept.values() for batch in kept])
            before, now = predicted - self.coefficients[0], b * num_tokens + c * num_squares
            factor = max(1.0, before / MOST_CHANGE / now) if self._num_batches > 1 else 1.0
            self.coefficients = a, b * factor, c * factor


def _fit(batches: list[tuple[int, int, float]]) -> tuple[float, float, float]:
    """The non-negative coefficients with the least sum of squared relative errors.

    With three unknowns the optimum is that of one of the subsets of terms, so all are tried.
    """
    rows = [(1.0 / y, tokens / y, squares / y) for tokens, squares, y in batches]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(3)] for i in range(3)]
    wanted = [sum(row[i] for row in rows) for i in range(3)]
    best, least = FIRST_GUESS, float("inf")
    for terms in ((0, 1, 2), (0, 1), (1, 2), (0, 2), (1,), (0,), (2,)):
        solved = _solve([[gram[i][j] for j in terms] for i in terms], [wanted[i] for i in terms])
        if solved is None or min(solved) < 0.0:
            continue
        found = dict(zip(terms, solved, strict=True))
        a, b, c = (found.get(term, 0.0) for term in range(3))
        loss = sum((a * one + b * tokens + c * squares - 1.0) ** 2 for one, tokens, squares in rows)
        if loss < least - LEAST_GAIN * len(rows):
            best, least = (a, b, c), loss
    a, b, c = best
    if not b and not c:  # tokens cost something, whatever noise says
        b = LEAST_OF_TOKENS * a / max(tokens for tokens, _, _ in batches)
    return a, b, c


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float] | None:
    """Gaussian elimination with a pivot and scaled columns; None where the terms cannot be told apart."""
    size = len(vector)
    scale = [max(matrix[i][i], 1e-300) ** 0.5 for i in range(size)]
    rows = [[matrix[i][j] / (scale[i] * scale[j]) for j in range(size)] + [vector[i] / scale[i]] for i in range(size)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        if abs(rows[pivot][column]) < 1e-9:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            rows[row] = [value - factor * above for value, above in zip(rows[row], rows[column], strict=True)]
    found = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][column] * found[column] for column in range(row + 1, size))
        found[row] = (rows[row][size] - known) / rows[row][row]
    return [value / scale[index] for index, value in enumerate(found)]
