"""From what a model gives for each token to one vector, and from a long vector to a short one."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from appliance.embedding.engine import Matrix

Pooling: TypeAlias = Literal["mean", "cls", "last"]


def pooled(hidden: npt.NDArray[np.float32], mask: npt.NDArray[np.int64], how: Pooling) -> Matrix:
    """One vector a text.

    Args:
        hidden: float32 (texts, tokens, dimensions).
        mask: int64 (texts, tokens): 1 for a token, 0 for padding after it; no text without a token.
        how: the mean over tokens, the first token, or the last token that is no padding.

    Returns:
        float32 (texts, dimensions), not normalised.
    """
    if how == "cls":
        first: Matrix = hidden[:, 0]
        return first
    if how == "last":
        last: Matrix = hidden[np.arange(len(hidden)), mask.sum(axis=1) - 1]
        return last
    weights = mask.astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    mean: Matrix = np.einsum("nt,ntd->nd", weights, hidden)
    return mean


def normalized(vectors: Matrix) -> Matrix:
    """Each row scaled to length 1; a row of zeros stays zeros. float32 (n, d) in and out."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Matrix = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
    return result


def shortened(vectors: Matrix, dimensions: int) -> Matrix:
    """The first `dimensions` of each row, scaled to length 1 again (Matryoshka; Kusupati et al. 2022)."""
    return vectors if dimensions >= vectors.shape[1] else normalized(vectors[:, :dimensions])
