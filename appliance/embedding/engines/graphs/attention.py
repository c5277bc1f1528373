"""Attention and what tells it where tokens stand: rotation, distances, windows."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from appliance.embedding.engines.graphs.architecture import Rows
from appliance.embedding.engines.graphs.weights import Floats
from appliance.embedding.engines.graphs.writer import Graph

Mask: TypeAlias = str | Callable[[str], str]
"""Which tokens each token looks at: bool, true where it does, or float to add to the scores; (texts, 1 or heads,
tokens, tokens) or fewer axes. Or what writes it for some of the tokens, given their positions.
"""

_BLOCK = 512
"""Tokens that look at all others at a time."""

_UNSEEN = -1e30
"""Added to the score of a token that is not looked at; finite, so that what sees nothing is no NaN."""


def frequencies(theta: float, size: int) -> npt.NDArray[np.float64]:
    """Radians that each pair of channels of a head turns for a token: theta^(-2i/size), (size / 2,)."""
    return np.asarray(theta, np.float64) ** -(np.arange(0, size, 2) / size)


class Rotary:
    """Rotary position embedding (Su et al. 2021) of the first half of a head's channels with the second half."""

    def __init__(self, graph: Graph, rows: Rows, radians: npt.NDArray[np.float64]) -> None:
        self._graph = graph
        angles = graph("Mul", graph("Unsqueeze", rows.positions(), graph.integers(1)), graph.constant(radians))
        shape = graph("Concat", rows.shape, graph.integers(len(radians)), axis=0)
        self._turns = [graph("Expand", graph(function, angles), shape) for function in ("Cos", "Sin")]

    def __call__(self, states: str, heads: int) -> str:
        """Turn (texts, tokens, heads * channels)."""
        return self._graph("RotaryEmbedding", states, *self._turns, num_heads=heads)


def attention(
    graph: Graph,
    rows: Rows,
    parts: Sequence[str],
    mask: Mask,
    *,
    heads: tuple[int, int],
    size: int,
    scale: float | None = None,
) -> str:
    """Scaled dot-product attention (Vaswani et al. 2017), as rows (texts * tokens, heads * size).

    Long texts are worked on in blocks of tokens that look, so that memory grows with the length and not its square.

    Args:
        graph: being written.
        rows: of it.
        parts: queries, keys and values, (texts, tokens, heads * size).
        mask: which tokens each looks at.
        heads: of the queries, and of keys and values.
        size: channels of one head.
        scale: of the scores; 1 / √size if left out.
    """
    options = {"q_num_heads": heads[0], "kv_num_heads": heads[1], "scale": size**-0.5 if scale is None else scale}
    query, key, value = parts
    positions = rows.positions()
    if rows.longest <= _BLOCK:
        seen = mask if isinstance(mask, str) else mask(positions)
        return rows.flat(graph("Attention", query, key, value, seen, **options), heads[0] * size)

    def block(turn: str, done: str) -> str:
        first = graph("Mul", graph("Unsqueeze", turn, graph.integers(0)), graph.integers(_BLOCK))
        last = graph("Add", first, graph.integers(_BLOCK))
        if isinstance(mask, str):
            seen = graph("Slice", mask, first, last, graph.integers(2))
        else:
            seen = mask(graph("Slice", positions, first, last, graph.integers(0)))
        part = graph("Slice", query, first, last, graph.integers(1))
        return graph("Concat", done, graph("Attention", part, key, value, seen, **options), axis=1)

    blocks = graph("Div", graph("Add", rows.tokens, graph.integers(_BLOCK - 1)), graph.integers(_BLOCK))
    none = graph("Slice", query, graph.integers(0), graph.integers(0), graph.integers(1))
    context = graph.loop(graph("Squeeze", blocks, graph.integers(0)), none, block)
    return rows.flat(context, heads[0] * size)


def backwards(graph: Graph, rows: Rows) -> Mask:
    """Each token looks at those before it, and itself: padding stands on the right, where no token looks."""

    def seen(positions: str) -> str:
        return graph("LessOrEqual", rows.positions(), graph("Unsqueeze", positions, graph.integers(1)))

    return seen


def biased(graph: Graph, bias: str) -> str:
    """A mask that adds a bias, (1, heads, tokens, tokens), to the scores of tokens that are no padding."""
    padding = graph("Sub", graph("Cast", "attention_mask", to=TensorProto.FLOAT), graph.constant(1.0))
    padding = graph("Mul", graph("Unsqueeze", padding, graph.integers(1, 2)), graph.constant(-_UNSEEN))
    return graph("Add", bias, padding)


def bias_by_distance(graph: Graph, rows: Rows, values: Floats) -> str:
    """A bias that depends on how far one token stands after the other, (1, heads, tokens, tokens).

    Args:
        graph: being written.
        rows: of it.
        values: (2 * reach + 1, heads), for the distances -reach … reach; those further away are taken as the furthest.
    """
    reach = len(values) // 2
    places = graph("Clip", rows.distances(), graph.constant(-reach), graph.constant(reach))
    places = graph("Cast", graph("Add", places, graph.constant(reach)), to=TensorProto.INT64)
    bias = graph("Transpose", graph("Gather", graph.constant(values), places), perm=[2, 0, 1])
    return graph("Unsqueeze", bias, graph.integers(0))


def buckets(reach: int, count: int, furthest: int) -> npt.NDArray[np.int64]:
    """T5's buckets (Raffel et al. 2020) for the distances -reach … reach: half of them for tokens that stand after.

    Near tokens have a bucket each, those further away share them, by the logarithm, up to `furthest`.
    """
    distances = np.arange(-reach, reach + 1)
    half, near = count // 2, count // 4
    far = np.maximum(np.abs(distances), 1)
    steps = np.log(far.astype(np.float32) / near) / math.log(furthest / near) * (half - near)
    logarithmic = np.minimum(near + steps.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < near, np.abs(distances), logarithmic)


def within(graph: Graph, rows: Rows, seen: str, window: int) -> str:
    """Of the tokens seen, those fewer than `window` away, and each token itself."""
    far = graph("Abs", rows.distances())
    near = graph("And", seen, graph("Less", far, graph.constant(window)))
    return graph("Or", near, graph("Less", far, graph.constant(1)))


def slopes(heads: int) -> npt.NDArray[np.float64]:
    """How much the score of each head falls with every token of distance (ALiBi; Press et al. 2022), (heads,).

    For a number of heads that is no power of 2, those of the next lower one, and every second of the next higher one.
    """
    whole = 1 << (heads.bit_length() - 1)
    first = 2.0 ** (-8 / whole * np.arange(1, whole + 1))
    more = 2.0 ** (-4 / whole * np.arange(1, 2 * whole + 1, 2))
    return np.concatenate([first, more[: heads - whole]])


def falling(graph: Graph, rows: Rows, heads: int) -> Mask:
    """A mask of ALiBi's bias in both directions, and of tokens that are no padding."""
    fall = graph.constant(-slopes(heads).reshape(1, heads, 1, 1))

    def bias(positions: str) -> str:
        far = graph("Abs", graph("Sub", rows.positions(), graph("Unsqueeze", positions, graph.integers(1))))
        return biased(graph, graph("Mul", graph("Unsqueeze", far, graph.integers(0, 1)), fall))

    return bias


def head_norm(
    graph: Graph, rows: Rows, states: str, name: str, *, heads: int, size: int, epsilon: float, offset: float = 0.0
) -> str:
    """Root mean square norm of each head of (texts, tokens, heads * size)."""
    scale = graph.weights.take(f"{name}.weight", (size,)) + np.float32(offset)
    normed = graph.rms(graph("Reshape", states, graph.integers(-1, size)), scale, epsilon=epsilon)
    return rows.deep(normed, heads * size)
