"""Which models the CPU's engine can run, told before anything large is fetched."""

import json
from typing import Final

from appliance.errors import EngineUnavailable

WEIGHTS: Final = frozenset({"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"})
"""Files that a graph is built from, besides ready-made `.onnx` files: the first name of each form of weights.

`model.safetensors.index.json` stands for weights in several files, `pytorch_model.bin` for pickled ones.
"""


def known_architecture(config: bytes) -> str | None:
    """The architecture that a `config.json` describes, as its `model_type`; None where no graph can be built of it.

    A repository that brings code of its own for one of the common architectures is not known: what that code does to
    the vectors, nobody here can tell.
    """
    from appliance.embedding.engines.graphs.bert import Bert  # heavy
    from appliance.embedding.engines.graphs.build import parse_config

    try:
        known = parse_config(config)
    except EngineUnavailable:
        return None
    if type(known) is Bert and b'"auto_map"' in config:
        return None
    kind: str = json.loads(config)["model_type"]
    return kind
