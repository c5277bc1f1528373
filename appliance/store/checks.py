"""What every store asks of what it is given."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from appliance.errors import InvalidInput, ModelMismatch
from appliance.store.base import Chunk, Matrix, Vector

MAX_DIMENSIONS: Final = 8192
"""What sqlite-vec takes."""

_AT_ONCE: Final = 65_536
"""Numbers of vectors that are multiplied at a time: memory that is small enough to be used again."""

_TOLERANCE: Final = 1e-3
"""How far from 1 the length of a float32 vector may be that was normalised in half precision."""


def check_dimensions(dimensions: int) -> None:
    """Raise InvalidInput unless vectors of this length can be stored."""
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise InvalidInput(f"vectors have 1 to {MAX_DIMENSIONS} dimensions, not {dimensions}", param="dimensions")


def check_space(collection: str, wanted: str, known: str) -> None:
    """Raise ModelMismatch where vectors of two spaces would come into one collection; "" is a space that nobody named.

    Appliances that share a store have settings of their own: one of them may have another model.
    """
    if wanted and known and wanted != known:
        raise ModelMismatch(
            f"the collection {collection!r} of the shared store has vectors of another model ({known}): give this one "
            "another name, or use the same model"
        )


def checked_vectors(vectors: npt.NDArray[np.generic], *, rows: int, dimensions: int) -> Matrix:
    """The vectors as contiguous float32 (rows, dimensions). InvalidInput for another shape or a row not of length 1."""
    if vectors.shape != (rows, dimensions):
        raise InvalidInput(f"the vectors are {vectors.shape}, the collection needs {(rows, dimensions)}")
    result: Matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.sqrt(np.square(result, dtype=np.float64).sum(axis=1))
    if not (np.abs(lengths - 1) < _TOLERANCE).all():  # said so that NaN fails it too
        raise InvalidInput("a vector is not of unit length")
    return result


def checked_query(vector: npt.NDArray[np.generic], *, dimensions: int) -> Vector:
    """The same for one vector, float32 (dimensions,)."""
    row: Vector = checked_vectors(vector[None], rows=1, dimensions=dimensions)[0]
    return row


def metadata_json(chunks: Sequence[Chunk]) -> list[str]:
    """Each chunk's metadata as JSON text. InvalidInput for what is not JSON, and for two chunks of one ordinal."""
    if len({chunk.ordinal for chunk in chunks}) != len(chunks):
        raise InvalidInput("two chunks have the same ordinal")
    last: Mapping[str, object] | None = None
    result: list[str] = []
    for chunk in chunks:  # the chunks of a document mostly share one object
        if last is None or chunk.metadata is not last:
            last = chunk.metadata
            try:
                text = json.dumps(dict(last), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            except (TypeError, ValueError) as error:
                raise InvalidInput("metadata is not JSON", param="metadata") from error
        result.append(text)
    return result


def cosines(rows: Matrix, vector: Vector) -> npt.NDArray[np.float64]:
    """Cosine similarity of unit rows (n, d) to a unit vector (d,), float64 (n,) in -1…1.

    Equal rows get equal scores wherever they stand, which a BLAS product does not promise; so ties are ties.
    """
    scores = np.empty(len(rows), np.float64)
    at_once = max(_AT_ONCE // len(vector), 1)
    for start in range(0, len(rows), at_once):
        products = rows[start : start + at_once].astype(np.float64)
        products *= vector
        products.sum(axis=1, out=scores[start : start + at_once])
    return np.clip(scores, -1.0, 1.0, out=scores)
