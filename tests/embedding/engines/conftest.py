"""A BERT small enough to be made up on the spot: random weights, and a tokenizer that knows letters."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

from appliance.embedding.spec import FileSpec, HubSource, OnnxRerankerSpec, OnnxSpec

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Tiny:
    """A model's files; `change` writes some of them anew."""

    folder: Path

    @property
    def paths(self) -> dict[str, Path]:
        return {path.name: path for path in self.folder.iterdir()}

    def spec(self, **card: Any) -> OnnxSpec:
        files = {
            name: FileSpec(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
            for name, path in self.paths.items()
        }
        card = {"name": "tiny", "family": "bert", "dimensions": 32, "max_tokens": 24} | card
        source = HubSource(kind="hub", repo="nobody/nothing", revision="0" * 40)
        return OnnxSpec(engine="onnx", files=files, sources=(source,), **card)

    def reranker_spec(self, **card: Any) -> OnnxRerankerSpec:
        """A card of files that the owner brought."""
        card = {"name": "tiny", "family": "bert", "max_tokens": 24, "own": tuple(self.paths)} | card
        return OnnxRerankerSpec(engine="onnx", task="rerank", **card)

    def change(self, **config: Any) -> None:
        """Write `config.json` with these changes, and weights to match."""
        merged = CONFIG | config
        (self.folder / "config.json").write_text(json.dumps(merged))
        save_file(random_weights(merged), self.folder / "model.safetensors")

    def make_reranker(self, *, labels: int = 1, **config: Any) -> None:
        """Write a sequence classifier as transformers save it: a prefix on the names of all but the head."""
        merged = CONFIG | {"id2label": {str(n): f"LABEL_{n}" for n in range(labels)}} | config
        (self.folder / "config.json").write_text(json.dumps(merged))
        weights = random_weights(merged, prefix=f"{merged['model_type'].removeprefix('xlm-')}.")
        random, hidden = np.random.default_rng(8), merged["hidden_size"]
        bert = merged["model_type"] == "bert"
        first, second = ("bert.pooler.dense", "classifier") if bert else ("classifier.dense", "classifier.out_proj")
        for name, outputs in ((first, hidden), (second, labels)):
            weights[f"{name}.weight"] = (0.3 * random.standard_normal((outputs, hidden))).astype(np.float32)
            weights[f"{name}.bias"] = random.standard_normal(outputs).astype(np.float32)
        save_file(weights, self.folder / "model.safetensors")


def random_weights(config: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Weights of the right names and shapes, with a loud channel 5 as real models have."""
    random = np.random.default_rng(7)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, Any] = {}

    def put(name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        weights[prefix + name] = (around + spread * random.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> None:
        put(f"{name}.LayerNorm.weight", hidden, around=1.0)
        put(f"{name}.LayerNorm.bias", hidden)
        weights[f"{prefix}{name}.LayerNorm.weight"][5] = 2.5

    put("embeddings.word_embeddings.weight", config["vocab_size"], hidden, spread=1)
    put("embeddings.position_embeddings.weight", config["max_position_embeddings"], hidden, spread=0.3)
    put("embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden)
    norm("embeddings")
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        for name, outputs, inputs in (
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            put(f"{at}.{name}.weight", outputs, inputs)
            put(f"{at}.{name}.bias", outputs)
        norm(f"{at}.attention.output")
        norm(f"{at}.output")
    return weights


def letter_tokenizer() -> tokenizers.Tokenizer:
    """`[CLS] letters [SEP]`, with padding and truncation set in the file, as published ones often have."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=specials
    )
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(max_length=5)
    return tokenizer


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    folder = tmp_path / "tiny"
    folder.mkdir()
    model = Tiny(folder)
    model.change()
    letter_tokenizer().save(str(folder / "tokenizer.json"))
    return model
