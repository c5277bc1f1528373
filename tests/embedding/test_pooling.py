import numpy as np
import pytest

from appliance.embedding.pooling import Pooling, normalized, pooled, shortened

HIDDEN = np.array([[[1, 2], [3, 4], [99, 99]], [[5, 6], [7, 8], [9, 10]]], np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int64)


@pytest.mark.parametrize(
    ("how", "vectors"),
    [("mean", [[2, 3], [7, 8]]), ("cls", [[1, 2], [5, 6]]), ("last", [[3, 4], [9, 10]])],
)
def test_padding_has_no_part_in_a_vector(how: Pooling, vectors: list[list[float]]) -> None:
    result = pooled(HIDDEN, MASK, how)

    assert result.dtype == np.float32
    assert result.tolist() == vectors


def test_normalized_rows_have_length_one_and_zeros_stay_zeros() -> None:
    result = normalized(np.array([[3, 4], [0, 0]], np.float32))

    assert result.dtype == np.float32
    assert result.tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]


def test_a_shortened_vector_has_length_one_again() -> None:
    vectors = normalized(np.array([[3, 4, 12]], np.float32))

    assert np.allclose(shortened(vectors, 2), [[0.6, 0.8]])
    assert shortened(vectors, 3) is vectors
