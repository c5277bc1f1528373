"""Makes a tiny model of each architecture, and says what the reference gives for a few texts.

Run by an interpreter that has torch and transformers (`scripts/install reference`):

    .venv-reference/bin/python tests/reference/generate.py FOLDER

Each model comes to lie in a folder of its own, as its authors publish it, with `reference.json` beside its files:
fields of a card, and what comes out. Models that transformers has are run by it; NomicBERT with experts, GTE and
JinaBERT, which come as code of their authors', are written down here once more in plain torch, from their equations.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch.nn import functional

TEXTS = [
    "",
    "a",
    "sphinx of black quartz",
    "judge my vow",
    "how vexingly quick daft zebras jump over all the lazy dogs near the river bank at dawn",
    "pack my box with five dozen liquor jugs " * 9,
    "amazingly few discotheques provide jukeboxes " * 18,
]

State = dict[str, torch.Tensor]
Run = Callable[[torch.Tensor], torch.Tensor]
"""Ids (1, tokens) to the last layer's states (1, tokens, hidden)."""


def tokenizer(specials: Sequence[str], template: str, pair: str | None = None) -> tokenizers.Tokenizer:
    """Words are letters; `specials` get the first ids."""
    words = [*specials, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase)]
    vocabulary = {word: index for index, word in enumerate(words)}
    unknown = "<unk>" if "<unk>" in specials else "[UNK]"
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(list(specials))
    used = [(word, vocabulary[word]) for word in specials if word in f"{template} {pair}"]
    made.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=used)
    return made


BERT = (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]")
ROBERTA = (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s> $A </s>")
T5 = (["<pad>", "</s>", "<unk>"], "$A </s>")
QWEN = (["<pad>", "<unk>", "<end>", "<start>"], "$A <end>")
GEMMA = (["<pad>", "<eos>", "<bos>", "<unk>"], "<bos> $A <eos>")

VOCABULARY = 64
HIDDEN = 32
MAX_TOKENS = 48
LONG = 700
"""Tokens of a text that attention works on in more than one block."""


def random_weights(state: State, *, centred: bool = False) -> State:
    """Weights far enough from nothing that every part of a model shows in what comes out; channel 5 is loud."""
    generator = torch.Generator().manual_seed(7)
    made = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if "embed" in name or "shared" in name or "relative_attention_bias" in name:
            value = noise * (0.5 if "position" in name or "relative" in name else 1.0)
        elif name.endswith("bias"):
            value = noise * 0.1
        elif tensor.ndim == 1:
            value = noise * 0.1 + (0.0 if centred else 1.0)
            if tensor.shape[0] == HIDDEN:
                value[5] += 3
        else:
            value = noise * 1.2 / math.sqrt(tensor.shape[-1])
        made[name] = value
    return made


AS: dict[str, dict[str, Any]] = {}
"""By the name of a model here: other cards, by name, with `pooling`, `dense` and the `prefixes` of each kind; their
vectors are wanted as well.
"""


class Folder:
    """One model being written."""

    def __init__(self, root: Path, name: str, words: tokenizers.Tokenizer, **card: Any) -> None:
        self.path = root / name
        self.path.mkdir()
        self.words = words
        self.words.save(str(self.path / "tokenizer.json"))
        self.card = {"family": "bert", "dimensions": HIDDEN, "max_tokens": MAX_TOKENS, "pooling": "mean"} | card
        self.hidden = HIDDEN
        self.layers: list[Callable[[torch.Tensor], torch.Tensor]] = []

    def config(self, config: dict[str, Any], folder: str = "") -> None:
        (self.path / folder).mkdir(exist_ok=True)
        (self.path / folder / "config.json").write_text(json.dumps(config))

    def weights(self, state: State, folder: str = "") -> None:
        (self.path / folder).mkdir(exist_ok=True)
        save_file(
            {name: value.clone().contiguous() for name, value in state.items()},
            self.path / folder / "model.safetensors",
        )

    def sharded(self, state: State) -> None:
        names = sorted(state)
        parts = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
        for file, held in parts.items():
            save_file({name: state[name].clone() for name in held}, self.path / file)
        index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))

    def dense(self, sizes: Sequence[int], *, activation: str, bias: bool, pickled: bool) -> None:
        """Add a layer behind the pooling."""
        name = f"{len(self.layers) + 2}_Dense"
        layer = torch.nn.Linear(sizes[0], sizes[1], bias=bias)
        layer.load_state_dict({key: value / 8 for key, value in random_weights(layer.state_dict()).items()})
        known = {"Identity": "linear.Identity", "Tanh": "activation.Tanh"}
        config = {"in_features": sizes[0], "out_features": sizes[1], "bias": bias}
        self.config(config | {"activation_function": f"torch.nn.modules.{known[activation]}"}, name)
        state = {f"linear.{key}": value for key, value in layer.state_dict().items()}
        if pickled:
            torch.save(state, self.path / name / "pytorch_model.bin")
        else:
            self.weights(state, name)
        after = getattr(torch.nn, activation)()
        self.layers.append(lambda row: after(layer(row)))
        self.card["dense"] = [*self.card.get("dense", []), name]
        self.card["dimensions"] = sizes[1]

    def ids(self, text: str) -> torch.Tensor:
        """Of a text, its end cut off before the closing special tokens."""
        whole, bare = self.words.encode(text).ids, self.words.encode(text, add_special_tokens=False).ids
        over = max(len(whole) - self.card["max_tokens"], 0)
        tail = self.words.encode("a").special_tokens_mask[::-1].index(0)
        head = len(whole) - len(bare) - tail
        return torch.tensor([whole[:head] + bare[: len(bare) - over] + whole[len(whole) - tail :]])

    def finish(self, run: Run, **more: Any) -> None:
        """Write what the model gives."""
        vectors = self.vectors(run, self.card, self.card.get("prefixes", {}).get("document", ""))
        reference = {"card": self.card, "texts": TEXTS, "vectors": vectors, "hidden": self.hidden} | more
        reference["as"] = {
            name: {kind: self.vectors(run, card, prefix) for kind, prefix in card["prefixes"].items()}
            for name, card in AS.get(self.path.name, {}).items()
        }
        (self.path / "reference.json").write_text(json.dumps(reference))

    def vectors(self, run: Run, card: dict[str, Any], prefix: str) -> list[list[float]]:
        """Of every text with a prefix, pooled as a card says, through the layers behind the pooling if it has any."""
        found = []
        with torch.no_grad():
            for text in TEXTS:
                states = run(self.ids(prefix + text))[0]
                pooling = card["pooling"]
                row = states.mean(0) if pooling == "mean" else states[0 if pooling == "cls" else -1]
                for layer in self.layers if card.get("dense") else ():
                    row = layer(row)
                found.append(functional.normalize(row, dim=0).tolist())
        return found


def filled(model: torch.nn.Module, *, dtype: torch.dtype = torch.float32, centred: bool = False) -> State:
    """Give a model random weights, as far as `dtype` holds them; they come back in that type."""
    state = {name: value.to(dtype) for name, value in random_weights(model.state_dict(), centred=centred).items()}
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    model.eval()
    return state


def hidden_of(model: torch.nn.Module) -> Run:
    return lambda ids: model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_TOKENS + 2,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}


def bert(root: Path) -> None:
    folder = Folder(root, "bert", tokenizer(*BERT), pooling="cls", prefixes={"document": "passage: "})
    config = transformers.BertConfig(**ENCODER)
    model = transformers.BertModel(config, add_pooling_layer=False)
    folder.weights(filled(model))
    folder.config(config.to_dict())
    folder.dense((HIDDEN, 16), activation="Tanh", bias=True, pickled=False)
    folder.finish(hidden_of(model))


def roberta(root: Path) -> None:
    folder = Folder(root, "roberta", tokenizer(*ROBERTA))
    config = transformers.RobertaConfig(**ENCODER | {"type_vocab_size": 1}, pad_token_id=1)
    model = transformers.RobertaModel(config, add_pooling_layer=False)
    folder.weights({f"roberta.{name}": value for name, value in filled(model).items()})
    folder.config(config.to_dict())
    folder.finish(hidden_of(model))


def bge_m3(root: Path) -> None:
    """XLM-RoBERTa with a weight and a vector for each token."""
    folder = Folder(root, "bge-m3", tokenizer(*ROBERTA), pooling="cls")
    config = transformers.XLMRobertaConfig(**ENCODER | {"type_vocab_size": 1}, pad_token_id=1)
    model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    torch.save(filled(model, dtype=torch.float16), folder.path / "pytorch_model.bin")
    folder.config(config.to_dict())
    sparse, colbert = torch.nn.Linear(HIDDEN, 1), torch.nn.Linear(HIDDEN, 24)
    for name, layer in (("sparse_linear.pt", sparse), ("colbert_linear.pt", colbert)):
        layer.load_state_dict(random_weights(layer.state_dict()))
        torch.save(layer.state_dict(), folder.path / name)
    folder.card |= {"sparse": "sparse_linear.pt", "multi_vector": "colbert_linear.pt"}
    run, weights, tokens = hidden_of(model), [], []
    with torch.no_grad():
        for text in TEXTS:
            ids = folder.ids(text)
            states = run(ids)[0]
            largest: dict[int, float] = {}
            for token, weight in zip(ids[0].tolist(), functional.relu(sparse(states))[:, 0].tolist(), strict=True):
                if token > 4 and weight > largest.get(token, 0):
                    largest[token] = weight
            weights.append(sorted(largest.items()))
            tokens.append(functional.normalize(colbert(states[1:]), dim=-1).tolist())
    folder.finish(run, sparse=weights, tokens=tokens)


def mpnet(root: Path) -> None:
    folder = Folder(root, "mpnet", tokenizer(*ROBERTA), max_tokens=160)
    config = transformers.MPNetConfig(**ENCODER | {"max_position_embeddings": 162}, pad_token_id=1)
    model = transformers.MPNetModel(config, add_pooling_layer=False)
    folder.weights(filled(model))
    folder.config(config.to_dict())
    folder.finish(hidden_of(model))


def t5(root: Path, name: str, feed_forward: str) -> None:
    folder = Folder(root, name, tokenizer(*T5), max_tokens=160)
    config = {"model_type": "t5", "d_model": HIDDEN, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_heads": 4}
    config |= {"vocab_size": VOCABULARY, "feed_forward_proj": feed_forward, "n_positions": 512}
    model = transformers.T5EncoderModel(transformers.T5Config(**config))
    state = filled(model)
    torch.save(state, folder.path / "pytorch_model.bin")
    folder.config(config)
    folder.dense((HIDDEN, 24), activation="Identity", bias=False, pickled=True)
    folder.finish(hidden_of(model))


DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}


def qwen3(root: Path) -> None:
    folder = Folder(
        root, "qwen3", tokenizer(*QWEN), max_tokens=LONG, pooling="last", prefixes={"document": "instruct: "}
    )
    config = DECODER | {"model_type": "qwen3", "hidden_act": "silu", "rope_theta": 500, "tie_word_embeddings": True}
    model = transformers.Qwen3Model(transformers.Qwen3Config(**config))
    folder.weights(filled(model, dtype=torch.bfloat16))
    folder.config(config)
    folder.finish(hidden_of(model))


def qwen3_reranker(root: Path) -> None:
    words = tokenizer(*QWEN)
    folder = Folder(root, "qwen3-reranker", words, max_tokens=64, yes=28, no=17)
    config = transformers.Qwen3Config(**DECODER, rope_theta=500, tie_word_embeddings=True)
    model = transformers.Qwen3ForCausalLM(config)
    filled(model)
    folder.weights({name: value for name, value in model.state_dict().items() if name != "lm_head.weight"})
    folder.config(config.to_dict() | {"model_type": "qwen3"})
    parts = {"opening": "<start>judge ", "before": "query ", "between": " text ", "closing": "<end><start>"}
    folder.card = {"family": "qwen3", "max_tokens": 64, "yes": 28, "no": 17, **parts}
    query, scores = "river bank", []
    pieces = [words.encode(parts[part], add_special_tokens=False).ids for part in ("opening", "closing")]
    with torch.no_grad():
        for text in TEXTS:
            middle = words.encode(f"query {query} text {text}", add_special_tokens=False).ids
            ids = torch.tensor([pieces[0] + middle[: 64 - len(pieces[0]) - len(pieces[1])] + pieces[1]])
            logits = model(input_ids=ids).logits[0, -1]
            scores.append(float(logits[28] - logits[17]))
    (folder.path / "reference.json").write_text(
        json.dumps({"card": folder.card, "query": query, "texts": TEXTS, "scores": scores})
    )


def gemma3(root: Path) -> None:
    folder = Folder(root, "gemma3", tokenizer(*GEMMA), max_tokens=LONG, prefixes={"document": "title: none "})
    config = DECODER | {"model_type": "gemma3_text", "num_key_value_heads": 1, "num_hidden_layers": 4}
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
    config |= {"use_bidirectional_attention": True, "query_pre_attn_scalar": 20, "rope_theta": 500.0}
    config |= {"rope_local_base_freq": 50.0, "hidden_activation": "gelu_pytorch_tanh"}
    model = transformers.Gemma3TextModel(transformers.Gemma3TextConfig(**config, attn_implementation="eager"))
    folder.sharded(filled(model, centred=True))
    folder.config(config)
    folder.dense((HIDDEN, 64), activation="Identity", bias=False, pickled=False)
    folder.dense((64, HIDDEN), activation="Identity", bias=False, pickled=False)
    folder.finish(hidden_of(model))


# Architectures whose code comes with the model: their equations, for one text without padding.


def layer_norm(x: torch.Tensor, state: State, name: str, epsilon: float) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def turned(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (heads, tokens, size)."""
    angles = torch.arange(x.shape[1])[:, None] * inverse
    cos, sin = (torch.cat([function(angles)] * 2, dim=-1) for function in (torch.cos, torch.sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    heads: int,
    inverse: torch.Tensor | None = None,
    bias: Any = 0.0,
) -> torch.Tensor:
    """(tokens, hidden) each."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in (query, key, value))
    if inverse is not None:
        q, k = turned(q, inverse), turned(k, inverse)
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def dense_shapes(name: str, outputs: int, inputs: int, *, bias: bool) -> State:
    made = {f"{name}.weight": torch.empty(outputs, inputs)}
    return made | ({f"{name}.bias": torch.empty(outputs)} if bias else {})


def norm_shapes(name: str) -> State:
    return {f"{name}.weight": torch.empty(HIDDEN), f"{name}.bias": torch.empty(HIDDEN)}


def tables(types: int) -> State:
    return {
        "embeddings.word_embeddings.weight": torch.empty(VOCABULARY, HIDDEN),
        "embeddings.token_type_embeddings.weight": torch.empty(types, HIDDEN),
    }


def looked_up(ids: torch.Tensor, state: State) -> torch.Tensor:
    return state["embeddings.word_embeddings.weight"][ids[0]] + state["embeddings.token_type_embeddings.weight"][0]


def inverse_frequencies(theta: float, size: int) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, size, 2).float() / size)


class Nomic:
    """NomicBERT with SwiGLU, or with `experts` on every other layer."""

    layers, heads, inner = 4, 4, 48

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.epsilon, self.theta = (1e-5, 100.0) if experts else (1e-12, 10.0)
        self.state = random_weights(self.shapes())

    def config(self) -> dict[str, Any]:
        biased = bool(self.experts)
        config = {"model_type": "nomic_bert", "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": self.layers}
        config |= {"n_head": self.heads, "n_inner": self.inner, "n_positions": 512, "type_vocab_size": 2}
        config |= {"layer_norm_epsilon": self.epsilon, "rotary_emb_base": self.theta, "rotary_emb_fraction": 1.0}
        config |= {"rotary_scaling_factor": None, "prenorm": False, "use_rms_norm": False}
        config |= {"qkv_proj_bias": biased, "mlp_fc1_bias": biased, "mlp_fc2_bias": biased}
        config["activation_function"] = "gelu" if self.experts else "swiglu"
        return config | ({"num_experts": self.experts, "moe_top_k": 2, "moe_every_n_layers": 2} if self.experts else {})

    def routed(self, layer: int) -> bool:
        return bool(self.experts and layer % 2)

    def shapes(self) -> State:
        biased = bool(self.experts)
        state = tables(2) | norm_shapes("emb_ln")
        for layer in range(self.layers):
            at = f"encoder.layers.{layer}"
            state |= dense_shapes(f"{at}.attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=biased)
            state |= dense_shapes(f"{at}.attn.out_proj", HIDDEN, HIDDEN, bias=biased)
            state |= norm_shapes(f"{at}.norm1") | norm_shapes(f"{at}.norm2")
            if self.routed(layer):
                state[f"{at}.mlp.router.layer.weight"] = torch.empty(self.experts, HIDDEN)
                stacked = (self.experts * self.inner, HIDDEN)
                state |= {f"{at}.mlp.experts.mlp.{part}": torch.empty(stacked) for part in ("w1", "w2")}
                state[f"{at}.mlp.experts.bias"] = torch.empty(HIDDEN)
            else:
                for part in ("fc1",) if self.experts else ("fc11", "fc12"):
                    state |= dense_shapes(f"{at}.mlp.{part}", self.inner, HIDDEN, bias=biased)
                state |= dense_shapes(f"{at}.mlp.fc2", HIDDEN, self.inner, bias=biased)
        return state

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        state, epsilon = self.state, self.epsilon
        inverse = inverse_frequencies(self.theta, HIDDEN // self.heads)
        x = layer_norm(looked_up(ids, state), state, "emb_ln", epsilon)
        for layer in range(self.layers):
            at = f"encoder.layers.{layer}"
            parts = linear(x, state, f"{at}.attn.Wqkv").chunk(3, dim=-1)
            context = linear(attended(*parts, heads=self.heads, inverse=inverse), state, f"{at}.attn.out_proj")
            x = layer_norm(x + context, state, f"{at}.norm1", epsilon)
            grown = self.mixed(x, f"{at}.mlp") if self.routed(layer) else self.mlp(x, f"{at}.mlp")
            x = layer_norm(x + grown, state, f"{at}.norm2", epsilon)
        return x[None]

    def mlp(self, x: torch.Tensor, at: str) -> torch.Tensor:
        state = self.state
        if self.experts:
            return linear(functional.gelu(linear(x, state, f"{at}.fc1")), state, f"{at}.fc2")
        gate = functional.silu(linear(x, state, f"{at}.fc12"))
        return linear(linear(x, state, f"{at}.fc11") * gate, state, f"{at}.fc2")

    def mixed(self, x: torch.Tensor, at: str) -> torch.Tensor:
        chances = functional.linear(x, self.state[f"{at}.router.layer.weight"]).softmax(-1)
        shape = (self.experts, self.inner, HIDDEN)
        w1, w2 = (self.state[f"{at}.experts.mlp.{part}"].view(shape) for part in ("w1", "w2"))
        rows = []
        for row, chance in zip(x, chances, strict=True):
            best = chance.topk(2)
            given = [p * (functional.gelu(w1[e] @ row) @ w2[e]) for p, e in zip(best.values, best.indices, strict=True)]
            rows.append(sum(given) + self.state[f"{at}.experts.bias"])
        return torch.stack(rows)


def nomic(root: Path, name: str, *, experts: int) -> None:
    words = tokenizer(*(ROBERTA if experts else BERT))
    folder = Folder(root, name, words, prefixes={"document": "search document: "})
    model = Nomic(experts)
    folder.weights(model.state)
    folder.config(model.config())
    folder.finish(model.run)


def gte(root: Path) -> None:
    folder = Folder(root, "gte", tokenizer(*ROBERTA), max_tokens=LONG, pooling="cls")
    layers, heads, inner, epsilon, theta, factor = 3, 4, 48, 1e-12, 30.0, 8.0
    config = {
        **ENCODER,
        "max_position_embeddings": 2048,
        "model_type": "new",
        "layer_norm_eps": epsilon,
        "rope_theta": theta,
        "type_vocab_size": 1,
    }
    config |= {"rope_scaling": {"type": "ntk", "factor": factor}, "position_embedding_type": "rope"}
    config |= {"layer_norm_type": "layer_norm", "pack_qkv": True, "logn_attention_scale": False}
    state = tables(1) | norm_shapes("embeddings.LayerNorm")
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        state |= dense_shapes(f"{at}.attention.qkv_proj", 3 * HIDDEN, HIDDEN, bias=True)
        state |= dense_shapes(f"{at}.attention.o_proj", HIDDEN, HIDDEN, bias=True)
        state |= dense_shapes(f"{at}.mlp.up_gate_proj", 2 * inner, HIDDEN, bias=False)
        state |= dense_shapes(f"{at}.mlp.down_proj", HIDDEN, inner, bias=True)
        state |= norm_shapes(f"{at}.attn_ln") | norm_shapes(f"{at}.mlp_ln")
    half = {f"new.{name}": value.half() for name, value in random_weights(state).items()}
    state = {name.removeprefix("new."): value.float() for name, value in half.items()}
    size = HIDDEN // heads
    inverse = inverse_frequencies(theta * factor, size) / factor ** (2 / size)

    def run(ids: torch.Tensor) -> torch.Tensor:
        x = layer_norm(looked_up(ids, state), state, "embeddings.LayerNorm", epsilon)
        for layer in range(layers):
            at = f"encoder.layer.{layer}"
            parts = linear(x, state, f"{at}.attention.qkv_proj").chunk(3, dim=-1)
            context = linear(attended(*parts, heads=heads, inverse=inverse), state, f"{at}.attention.o_proj")
            x = layer_norm(x + context, state, f"{at}.attn_ln", epsilon)
            up, gate = linear(x, state, f"{at}.mlp.up_gate_proj").chunk(2, dim=-1)
            x = layer_norm(
                x + linear(functional.gelu(gate) * up, state, f"{at}.mlp.down_proj"), state, f"{at}.mlp_ln", epsilon
            )
        return x[None]

    folder.weights(half | {"classifier.weight": torch.ones(1, HIDDEN), "classifier.bias": torch.ones(1)})
    folder.config(config)
    folder.finish(run)


def jina(root: Path) -> None:
    folder = Folder(root, "jina", tokenizer(*BERT), max_tokens=LONG)
    layers, heads, inner, epsilon = 3, 6, 48, 1e-12
    hidden = 48
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]  # four heads, and every second of eight
    config = {
        **ENCODER,
        "max_position_embeddings": 2048,
        "model_type": "bert",
        "hidden_size": hidden,
        "num_attention_heads": heads,
    }
    config |= {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "layer_norm_eps": epsilon}
    folder.card["dimensions"] = folder.hidden = hidden
    state = {"embeddings.word_embeddings.weight": torch.empty(VOCABULARY, hidden)}
    state["embeddings.token_type_embeddings.weight"] = torch.empty(2, hidden)
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            state |= dense_shapes(f"{at}.attention.{part}", hidden, hidden, bias=True)
        state |= dense_shapes(f"{at}.mlp.gated_layers", 2 * inner, hidden, bias=False)
        state |= dense_shapes(f"{at}.mlp.wo", hidden, inner, bias=True)
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.mlp.layernorm"]
    state |= {f"{name}.{part}": torch.empty(hidden) for name in norms for part in ("weight", "bias")}
    state = random_weights(state)

    def run(ids: torch.Tensor) -> torch.Tensor:
        x = layer_norm(looked_up(ids, state), state, "embeddings.LayerNorm", epsilon)
        places = torch.arange(ids.shape[1])
        bias = -torch.tensor(slopes)[:, None, None] * (places[:, None] - places[None]).abs()
        for layer in range(layers):
            at = f"encoder.layer.{layer}"
            parts = [linear(x, state, f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
            context = linear(attended(*parts, heads=heads, bias=bias), state, f"{at}.attention.output.dense")
            x = layer_norm(x + context, state, f"{at}.attention.output.LayerNorm", epsilon)
            gate, up = linear(x, state, f"{at}.mlp.gated_layers").chunk(2, dim=-1)
            grown = linear(functional.gelu(gate) * up, state, f"{at}.mlp.wo")
            x = layer_norm(x + grown, state, f"{at}.mlp.layernorm", epsilon)
        return x[None]

    folder.weights(state)
    folder.config(config)
    folder.finish(run)


def main() -> None:
    root = Path(sys.argv[1])
    AS.update(json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  what transformers may draw from
    for make in (bert, roberta, bge_m3, mpnet, qwen3, qwen3_reranker, gemma3, gte, jina):
        make(root)
    t5(root, "t5", "relu")
    t5(root, "t5-gated", "gated-gelu")
    nomic(root, "nomic", experts=0)
    nomic(root, "nomic-moe", experts=4)


if __name__ == "__main__":
    main()
