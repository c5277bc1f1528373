"""Every error the appliance raises on purpose, in one tree that knows no HTTP.

    ApplianceError
    ├── InvalidInput
    │   ├── InputTooLong
    │   ├── DimensionsNotSupported
    │   └── BodyTooLarge
    ├── NotAllowed
    │   └── LicenseNotAccepted
    ├── NotFound
    │   ├── ModelNotFound
    │   ├── CollectionNotFound
    │   ├── DocumentNotFound
    │   └── JobNotFound
    ├── Conflict
    │   ├── CollectionExists
    │   └── ModelMismatch
    ├── Overloaded
    ├── EngineError
    │   ├── EngineUnavailable
    │   ├── EngineFailed
    │   └── UpstreamFailed
    └── StoreError
        ├── StoreUnavailable
        ├── StoreFull
        └── SchemaMismatch

A message is written for the person who called: what was wrong and what to do. It never holds document text, keys, SQL
or paths of the machine. `api.errors` maps each class to a status; the nearest ancestor wins.
"""


class ApplianceError(Exception):
    """Base of everything below; `message` is fit to be shown to the caller."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(ApplianceError):
    """The caller's input cannot be used. `param` names the field, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InputTooLong(InvalidInput):
    """A text has more tokens than the model takes, and the caller asked not to truncate.

    `tokens` is how many it has, or at least has with `exact=False`: a long text is not counted to its end.
    """

    def __init__(self, *, tokens: int, limit: int, exact: bool = True) -> None:
        count = f"{tokens}" if exact else f"more than {tokens - 1}"
        super().__init__(
            f"the input length exceeds the context length: {count} tokens, the model takes {limit}", param="input"
        )
        self.tokens = tokens
        self.limit = limit


class DimensionsNotSupported(InvalidInput):
    """The model has no vectors of the asked length."""


class BodyTooLarge(InvalidInput):
    """The request body is over the limit."""


class NotAllowed(ApplianceError):
    """The caller may not do this: no key, a wrong key, or a host or origin that is not ours."""


class LicenseNotAccepted(NotAllowed):
    """The model's licence forbids some uses, and nobody has accepted it yet."""


class NotFound(ApplianceError):
    """Something named by the caller does not exist. `name` is the name as it was asked for."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class ModelNotFound(NotFound):
    """No card has this name or alias."""


class CollectionNotFound(NotFound):
    """No collection has this name."""


class DocumentNotFound(NotFound):
    """The collection has no document with this id."""


class JobNotFound(NotFound):
    """There is no job of this number: there never was, or it was forgotten."""


class Conflict(ApplianceError):
    """The request is fine, but not in the present state."""


class CollectionExists(Conflict):
    """A collection of this name exists already."""


class ModelMismatch(Conflict):
    """The model's vectors are of another space than the collection's."""


class Overloaded(ApplianceError):
    """The queue is full; the same request may succeed later. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineError(ApplianceError):
    """An embedding engine gave no answer."""


class EngineUnavailable(EngineError):
    """The engine cannot be opened: a missing file, an extra that is not installed, a wrong machine. `retry_after` is in
    seconds, where it is known when another try may do better.
    """

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(EngineError):
    """The engine was asked and failed, or answered with something that is no vector."""


class UpstreamFailed(EngineError):
    """Another server that we depend on failed."""


class StoreError(ApplianceError):
    """The index gave no answer."""


class StoreUnavailable(StoreError):
    """The store cannot be opened or does not answer."""


class StoreFull(StoreError):
    """No space is left where the index lives."""


class SchemaMismatch(StoreError):
    """The database was written by another version of the appliance and cannot be migrated by this one."""
