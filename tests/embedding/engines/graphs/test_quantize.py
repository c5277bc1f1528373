import numpy as np
import pytest

from appliance.embedding.engines.graphs.quantize import Floats, per_channel, smoothing


@pytest.fixture(params=["ordinary", "one sign", "odd rows", "spikes"])
def weight(request: pytest.FixtureRequest) -> Floats:
    random = np.random.default_rng(3)
    weights: dict[str, Floats] = {
        "ordinary": random.standard_normal((64, 16)).astype(np.float32),
        "one sign": random.uniform(0.9, 1, (64, 16)).astype(np.float32),
        "odd rows": random.standard_normal((33, 16)).astype(np.float32),
        "spikes": np.where(random.random((64, 16)) < 0.05, 50, random.standard_normal((64, 16))).astype(np.float32),
    }
    return weights[request.param]


def test_two_neighbouring_products_fit_16_bits_whatever_the_activations(weight: Floats) -> None:
    integers, _ = per_channel(weight)

    pairs = integers[: len(integers) // 2 * 2].astype(int).reshape(-1, 2, weight.shape[1])
    assert 255 * np.maximum(pairs, 0).sum(axis=1).max() <= 32767
    assert 255 * np.minimum(pairs, 0).sum(axis=1).min() >= -32768


def test_every_weight_is_within_half_a_step(weight: Floats) -> None:
    integers, scales = per_channel(weight)

    assert integers.dtype == np.int8
    assert (np.abs(integers * scales - weight) <= scales * 0.501).all()


def test_most_of_the_range_is_used(weight: Floats) -> None:
    integers, _ = per_channel(weight)

    assert np.abs(integers.astype(int)).max(axis=0).min() >= 62


def test_a_channel_of_zeros_stays_zero() -> None:
    integers, scales = per_channel(np.zeros((4, 3), np.float32))

    assert not integers.any()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_smoothing_evens_out_a_loud_channel() -> None:
    peaks = np.array([1, 1, 30, 1], np.float32)
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)

    factors = smoothing(peaks, weight)
    smoothed = peaks / factors

    assert smoothed.max() / smoothed.min() < 30 / 2
    assert np.exp(np.log(factors).mean()) == pytest.approx(1, rel=1e-5)


def test_smoothing_survives_channels_that_are_always_zero() -> None:
    factors = smoothing(np.zeros(4, np.float32), np.zeros((4, 8), np.float32))

    assert np.isfinite(factors).all()
    assert (factors > 0).all()
