import json
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from appliance.embedding.hub import Hub
from appliance.embedding.repository import describe, restricted
from appliance.embedding.sources import Patience
from appliance.embedding.spec import OnnxRerankerSpec, OnnxSpec, parse_card
from appliance.errors import InvalidInput, UpstreamFailed

if TYPE_CHECKING:
    from tests.hub import HubServer


@pytest.fixture(scope="session")
def held(hub_module: Any) -> Mapping[str, bytes]:
    """What sentence-transformers save."""
    files: dict[str, bytes] = hub_module.sentence_transformer()
    return files


def described(hub: "HubServer", files: Mapping[str, bytes], **about: Any) -> OnnxSpec:
    """The card of a repository with these files."""
    hub.put("org/m", files, **about)
    text, card = describe(Hub(patience=Patience(answer=2), endpoint=hub.url), "org/m", "main", name="m", alias=True)
    assert isinstance(card, OnnxSpec)
    assert parse_card(text, "again") == card
    return card


def refusal(hub: "HubServer", files: Mapping[str, bytes], **about: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        described(hub, files, **about)
    assert not any(path.endswith("/model.safetensors") for path in hub.asked)  # before the large ones
    return caught.value.message


def changed(files: Mapping[str, bytes], name: str, **keys: Any) -> dict[str, bytes]:
    """The files with other keys in one that is JSON."""
    return {**files, name: json.dumps(json.loads(files[name]) | keys).encode()}


def piped(files: Mapping[str, bytes], *modules: str) -> dict[str, bytes]:
    """The files with another pipeline: `kind` or `path kind`, in order."""
    told = []
    for number, module in enumerate(modules):
        path, _, kind = module.rpartition(" ")
        told.append({"idx": number, "name": str(number), "path": path, "type": kind})
    return {**files, "modules.json": json.dumps(told).encode()}


def st(kind: str) -> str:
    return f"sentence_transformers.models.{kind}"


def dense(inputs: int = 32, outputs: int = 16, activation: str = "torch.nn.modules.activation.Tanh") -> bytes:
    about = {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation}
    return json.dumps(about).encode()


def test_a_card_tells_all_that_the_repository_says(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    about = {"cardData": {"license": "mit"}, "safetensors": {"parameters": {"F32": 19000}, "total": 19000}}

    card = described(hub, held, **about)

    assert card.aliases == ("org/m",)
    assert (card.license, card.accept_license, card.parameters) == ("mit", False, 19000)
    assert (card.family, card.engine, card.precision, card.pooling) == ("bert", "onnx", "fp32", "mean")
    assert (card.dimensions, card.max_tokens) == (32, 24)
    assert card.pinned == ("model.safetensors", "config.json", "tokenizer.json")
    [source] = card.sources
    assert source.model_dump() == {
        "kind": "hub",
        "repo": "org/m",
        "revision": hub.repositories["org/m"].commit,
        "folder": "",
    }


def test_only_small_files_are_read(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    described(hub, held)

    assert hub.cdn_tokens == []


def test_the_space_is_another_one_for_other_weights_and_the_same_for_another_page(
    hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    first = described(hub, held).space

    assert described(hub, {**held, "README.md": b"new"}).space == first
    assert described(hub, {**held, "model.safetensors": b"other"}).space != first
    assert described(hub, changed(held, "1_Pooling/config.json", pooling_mode="cls")).space != first
    prompts = {"query": "q: "}
    assert described(hub, changed(held, "config_sentence_transformers.json", prompts=prompts)).space != first


@pytest.mark.parametrize(
    ("keys", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean", "pooling_mode_mean_tokens": False}, "mean"),
    ],
)
def test_pooling_is_what_the_repository_says(
    keys: dict[str, Any], pooling: str, hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    assert described(hub, changed(held, "1_Pooling/config.json", **keys)).pooling == pooling


@pytest.mark.parametrize(
    ("prompts", "default", "expected"),
    [
        ({}, None, {}),
        ({"query": "query: ", "passage": "passage: "}, None, {"query": "query: ", "document": "passage: "}),
        ({"query": 'say "ü"\n\t', "document": "\x7f\u202e\U0001f9a6"}, None, None),
        (
            {"search_query": "a", "search_document": "b", "clustering": "c", "Classification": "d"},
            None,
            {"query": "a", "document": "b", "clustering": "c", "classification": "d"},
        ),
        ({"document": "d: ", "clustering": ""}, None, {"document": "d: ", "clustering": ""}),
        ({"all": "x: "}, "all", {"query": "x: ", "document": "x: "}),
        ({"all": "x: ", "query": "q: "}, "all", {"query": "q: ", "document": "x: "}),
        ({"query": "", "document": ""}, None, {}),
    ],
)
def test_prompts_become_prefixes(
    *,
    prompts: dict[str, str],
    default: str | None,
    expected: dict[str, str] | None,
    hub: "HubServer",
    held: Mapping[str, bytes],
) -> None:
    said = changed(held, "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)

    prefixes = described(hub, said).prefixes

    assert prefixes.model_dump(exclude_defaults=True) == (prompts if expected is None else expected)


def test_texts_are_as_long_as_the_least_of_what_is_said(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    silent = {name: body for name, body in held.items() if name != "sentence_bert_config.json"}

    assert described(hub, silent).max_tokens == 40  # positions
    assert described(hub, changed(silent, "tokenizer_config.json", model_max_length=30)).max_tokens == 30
    assert described(hub, changed(silent, "tokenizer_config.json", model_max_length=1e30)).max_tokens == 40
    assert described(hub, changed(held, "sentence_bert_config.json", max_seq_length=None)).max_tokens == 40
    roberta = changed(silent, "config.json", model_type="xlm-roberta", pad_token_id=1)
    assert described(hub, roberta).max_tokens == 38  # it counts from behind its padding
    assert described(hub, changed(silent, "config.json", max_position_embeddings=131072)).max_tokens == 512
    bare = {name: body for name, body in silent.items() if name != "tokenizer_config.json"}
    assert described(hub, changed(bare, "config.json", max_position_embeddings=131072)).max_tokens == 2048


def test_linear_layers_behind_the_pooling_are_on_the_card(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    files = piped(
        held, st("Transformer"), f"1_Pooling {st('Pooling')}", f"2_Dense {st('Dense')}", f"3 {st('Normalize')}"
    )
    files |= {"2_Dense/config.json": dense(), "2_Dense/model.safetensors": b"w", "2_Dense/pytorch_model.bin": b"w"}

    card = described(hub, files)

    assert (card.dense, card.dimensions) == (("2_Dense",), 16)
    assert card.pinned[-2:] == ("2_Dense/config.json", "2_Dense/model.safetensors")


def test_a_model_in_a_folder_of_its_own_is_found_there(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    inside = ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json")
    files = {f"0_Transformer/{name}" if name in inside else name: body for name, body in held.items()}
    files = piped(files, f"0_Transformer {st('Transformer')}", f"1_Pooling {st('Pooling')}")

    card = described(hub, files)

    assert card.pinned == ("model.safetensors", "config.json", "tokenizer.json")
    assert card.sources[0].folder == "0_Transformer"


def test_an_onnx_file_does_where_the_architecture_is_not_known(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    strange = changed(held, "config.json", model_type="stranger")

    card = described(hub, {**strange, "onnx/model.onnx": b"graph"})

    assert card.pinned == ("onnx/model.onnx", "tokenizer.json")
    assert "(stranger)" in refusal(hub, strange)
    assert "(stranger)" in refusal(hub, {**strange, "onnx/model.onnx": b"g", "onnx/model.onnx_data": b"weights"})


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_becomes_a_reranker(labels: int, hub: "HubServer", hub_module: Any) -> None:
    hub.put("org/m", hub_module.cross_encoder(labels=labels), tags=["license:apache-2.0"])

    _, card = describe(Hub(endpoint=hub.url), "org/m", "main", name="m", alias=False)

    assert isinstance(card, OnnxRerankerSpec)
    assert (card.aliases, card.license, card.max_tokens) == ((), "apache-2.0", 40)


def test_a_classifier_of_more_classes_is_no_reranker(hub: "HubServer", hub_module: Any) -> None:
    assert "a classifier of 3 classes" in refusal(hub, hub_module.cross_encoder(labels=3))


@pytest.mark.parametrize(
    ("about", "page", "named"),
    [
        ({"cardData": {"license": "mit"}, "tags": ["license:gpl"]}, b"", "mit"),
        ({"cardData": {"license": ["mit", "apache-2.0"]}}, b"", "mit apache-2.0"),
        ({"cardData": {"license": "other", "license_name": "some-research"}}, b"", "other some-research"),
        ({"cardData": None, "tags": ["bert", "license:bsd-3-clause"]}, b"", "bsd-3-clause"),
        ({"cardData": {"license": 5}}, b"", ""),
        ({"cardData": {"license": "\x1b[31mmit\n\u202e"}}, b"", "31mmit"),
        ({}, b"---\ntags:\n- x\nlicense: 'cc-by-nc-4.0'\n---\nlicense: mit", "cc-by-nc-4.0"),
        ({}, b"# M\nlicense: mit", ""),
    ],
)
def test_the_licence_is_the_hubs_or_the_pages(
    *,
    about: dict[str, Any],
    page: bytes,
    named: str,
    hub: "HubServer",
    held: Mapping[str, bytes],
) -> None:
    card = described(hub, {**held, "README.md": page or b"nothing"}, **about)

    assert card.license == named
    assert card.accept_license == restricted(named)


@pytest.mark.parametrize(
    "named",
    [
        *("cc-by-nc-4.0", "cc-by-nc-sa-3.0", "gemma", "llama3.2", "other", "other x-non-commercial", "openrail"),
        "some-research",
    ],
)
def test_a_licence_that_may_forbid_something_has_to_be_accepted(named: str) -> None:
    assert restricted(named)


@pytest.mark.parametrize(
    "named", ["mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "ncsa", "gpl-3.0", ""]
)
def test_a_licence_that_forbids_no_use_is_shown_only(named: str) -> None:
    assert not restricted(named)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([st("CLIPModel")], "is a CLIP model"),
        ([st("Transformer"), st("WordWeights"), st("Pooling")], "module that is not known here: 'WordWeights'"),
        (["custom_st.Transformer", st("Pooling")], "module that is not known here: 'custom_st.Transformer'"),
        ([st("Pooling"), st("Transformer")], "joins its modules"),
        ([st("Transformer")], "joins its modules"),
        ([], "joins its modules"),
        ([st("Transformer"), st("Pooling"), st("Normalize"), st("Dense")], "normalises its vectors before"),
        ([f"../../x {st('Transformer')}", st("Pooling")], "makes no sense"),
        ([f"/etc {st('Transformer')}", st("Pooling")], "makes no sense"),
    ],
)
def test_a_pipeline_that_is_not_known_is_refused_by_name(
    modules: list[str], says: str, hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    assert says in refusal(hub, piped(held, *modules))


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "['mean_tokens', 'max_tokens']"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "['weightedmean']"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "not known here: none"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 16}, "pools 16 dimensions of the 32"),
        ("1_Pooling/config.json", {"word_embedding_dimension": "many"}, "1_Pooling/config.json: 'word_embedding_dim"),
        ("config.json", {"model_type": "deberta"}, "architecture that is not known here (deberta)"),
        ("config.json", {"model_type": "\x1b[2J"}, "config.json: 'model_type'"),
        ("config.json", {"auto_map": {"AutoModel": "modeling.Other"}}, "architecture that is not known here (bert)"),
        ("config.json", {"position_embedding_type": "relative_key"}, "architecture that is not known here (bert)"),
        ("config.json", {"max_position_embeddings": 3}, "takes 3 tokens"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "puts texts into lower case"),
        ("config_sentence_transformers.json", {"prompts": {"query": "x" * 5000}}, "prompt of more than 4000"),
        ("config_sentence_transformers.json", {"prompts": ["x"]}, "makes no sense"),
    ],
)
def test_what_would_make_other_vectors_here_is_refused(
    *, name: str, keys: dict[str, Any], says: str, hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    files = changed(held, "tokenizer_config.json", do_lower_case=False)

    assert says in refusal(hub, changed(files, name, **keys))


def test_prompts_left_out_of_the_pooling_are_refused(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    files = changed(held, "1_Pooling/config.json", include_prompt=False)
    prompted = changed(files, "config_sentence_transformers.json", prompts={"query": "q: "})

    assert described(hub, files).prefixes.query == ""
    assert "leaves its prompts out" in refusal(hub, prompted)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dense(inputs=8), "a layer for 8 dimensions behind 32"),
        (dense(activation="torch.nn.modules.activation.GELU"), "activation not known here"),
        (dense(outputs=1 << 20), "2_Dense/config.json: 'out_features'"),
        (b"[]", "2_Dense/config.json"),
        (b"[" * 100_000, "is not JSON: 2_Dense/config.json"),
        (b" " * (5 << 20), "2_Dense/config.json: it has 5 MB"),
    ],
)
def test_a_linear_layer_that_is_not_known_is_refused(
    config: bytes, says: str, hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    files = piped(held, st("Transformer"), f"1_Pooling {st('Pooling')}", f"2_Dense {st('Dense')}")

    assert says in refusal(hub, {**files, "2_Dense/config.json": config, "2_Dense/model.safetensors": b"w"})


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("config.json", "has no config.json"),
        ("1_Pooling/config.json", "has no 1_Pooling/config.json"),
        ("modules.json", "has no modules.json"),
        ("model.safetensors", "has no weights that are read here"),
    ],
)
def test_a_file_that_is_needed_and_not_there_is_named(
    lacking: str, says: str, hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    files = {name: body for name, body in held.items() if name != lacking}

    assert says in refusal(hub, files)


def test_a_gated_repository_that_tells_what_it_holds_says_what_to_do(
    hub: "HubServer", held: Mapping[str, bytes]
) -> None:
    repository = hub.put("org/m", held)
    repository.gate, repository.listed = "hf_secret", True

    with pytest.raises(
        InvalidInput, match=r"modules\.json: HTTP status 401: the model org/m is gated: accept its terms"
    ):
        describe(Hub(endpoint=hub.url), "org/m", "main", name="m", alias=True)


def test_a_repository_of_another_kind_of_model_says_so(hub: "HubServer") -> None:
    assert "is a CLIP model" in refusal(hub, {"config.json": b'{"model_type": "clip", "architectures": ["CLIPModel"]}'})
    assert "as GGUF files" in refusal(hub, {"README.md": b"x", "model-q4.gguf": b"x"})


def test_shards_outside_the_repository_are_refused(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    files = {name: body for name, body in held.items() if name != "model.safetensors"}
    for shard in ("../../etc/passwd", "model-00001-of-00001.safetensors"):
        index = json.dumps({"weight_map": {"a": shard}}).encode()

        assert "shards of its weights" in refusal(hub, {**files, "model.safetensors.index.json": index})


def test_a_repository_that_is_not_there_and_a_hub_that_is_not_are_told_apart(hub: "HubServer") -> None:
    with pytest.raises(InvalidInput, match="org/none at revision main cannot be had"):
        describe(Hub(endpoint=hub.url), "org/none", "main", name="m", alias=True)
    with pytest.raises(UpstreamFailed, match="org/none cannot be read on the hub"):
        describe(Hub(endpoint="http://127.0.0.1:1"), "org/none", "main", name="m", alias=True)


def test_a_card_is_toml_that_a_person_can_read(hub: "HubServer", held: Mapping[str, bytes]) -> None:
    hub.put("org/m", held)

    text, _ = describe(Hub(endpoint=hub.url), "org/m", "main", name="m", alias=True)

    assert text.startswith("# Made by `appliance pull org/m`")
    assert 'pooling = "mean" # 1_Pooling/config.json\n' in text
    assert "# [prefixes]\n" in text
    assert list(tomllib.loads(text))[:3] == ["name", "aliases", "description"]
    assert max(map(len, text.splitlines())) <= 120
