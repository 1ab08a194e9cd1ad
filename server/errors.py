"""Every error a caller can meet, as one tree; rpc/status.py maps each class to one gRPC status.

EmbedmuxError
├── InvalidRequest        the request or one of its texts cannot be served as asked      INVALID_ARGUMENT
│   └── SpaceMismatch     vectors of different spaces or calibrations were compared      INVALID_ARGUMENT
├── NotFound              a task, adapter, prompt or model with that name is not here    NOT_FOUND
├── AdapterRejected       an adapter folder is broken, unsafe or not supported           FAILED_PRECONDITION
├── AdapterConflict       the id is taken by an adapter with other weights               ALREADY_EXISTS
├── Overloaded            more work than can be done in time; carries the seconds to wait RESOURCE_EXHAUSTED
├── DeadlineExceeded      the deadline passed before the work was computed               DEADLINE_EXCEEDED
├── Cancelled             the caller went away                                           CANCELLED
├── Unavailable           starting, draining, or the engine process is being restarted   UNAVAILABLE
├── EngineFailure         the computation itself failed                                  INTERNAL
├── ModelRejected         the model folder cannot be served (start-up only)              FAILED_PRECONDITION
└── InvalidConfig         the server was told something it cannot do (start-up only)     FAILED_PRECONDITION

Messages name the thing, the value, the limit and the next step; lower case, no full stop.
"""


class EmbedmuxError(Exception):
    """Root of the tree; never raised itself."""


class InvalidRequest(EmbedmuxError):
    """The request, or one text of it, asks for something that cannot be served."""


class SpaceMismatch(InvalidRequest):
    """Two sets of vectors do not live in one space, so a similarity between them means nothing."""


class NotFound(EmbedmuxError):
    """No task, adapter, prompt or model of that name."""


class AdapterRejected(EmbedmuxError):
    """An adapter folder that must not be served; the message names the module and the reason."""


class AdapterConflict(EmbedmuxError):
    """An adapter id that is already taken by other weights."""


class Overloaded(EmbedmuxError):
    """There is more work than can be done in time. ``retry_after_s`` is when trying again makes sense, in seconds.

    ``reason``, for the metrics: queue (it is full), deadline (it could not be met), memory or calls (their limit).
    """

    def __init__(self, message: str, retry_after_s: float = 0.1, reason: str = "queue") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceeded(EmbedmuxError):
    """The deadline passed; the work was not computed."""


class Cancelled(EmbedmuxError):
    """The caller cancelled; the work was dropped before it was computed."""


class Unavailable(EmbedmuxError):
    """The service cannot answer now: starting, draining or restarting its engine."""


class EngineFailure(EmbedmuxError):
    """The engine failed on this work."""


class ModelRejected(EmbedmuxError):
    """The model folder cannot be served."""


class InvalidConfig(EmbedmuxError):
    """The server was started with a setting it cannot use."""
