"""Texts and images into one space."""

import json
import os
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engine import EmbeddingEngine, Image, ImageEngine, Matrix
from appliance.embedding.engines import open_engine
from appliance.embedding.engines.clip import ClipEngine, open_clip, read_framing
from appliance.embedding.spec import ClipSpec, read_card
from appliance.errors import EngineFailed, EngineUnavailable, InvalidInput

ROOT = Path(__file__).parents[3]

TEXTS = [
    "a photo of a red cat",
    "otter",
    "the dog in the green blue photo at a cat of red unknown words beyond sixteen",
]

PATCHES = 17


@pytest.fixture(scope="session")
def data(bring_clip: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a tiny CLIP, its graphs built once."""
    folder = tmp_path_factory.mktemp("clip")
    bring_clip(folder)
    return folder


@pytest.fixture
def spec(data: Path) -> ClipSpec:
    card = read_card(data / "cards" / "tiny-clip.toml")
    assert isinstance(card, ClipSpec)
    return card


@pytest.fixture
def paths(data: Path) -> dict[str, Path]:
    return {path.name: path for path in (data / "models" / "tiny-clip").iterdir()}


@pytest.fixture
def engine(spec: ClipSpec, paths: dict[str, Path], data: Path) -> ClipEngine:
    return open_clip(spec, paths, cache=data / "cache")


@pytest.fixture
def changed(paths: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """The files with some keys of one JSON file changed; None leaves a key out."""

    def change(name: str, **keys: Any) -> dict[str, Path]:
        content = json.loads(paths[name].read_text()) | keys
        target = tmp_path / name
        target.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return paths | {name: target}

    return change


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> PIL.Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return PIL.Image.fromarray(cells).resize(size, PIL.Image.Resampling.BICUBIC)


def file_of(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> Image:
    file = BytesIO()
    image.save(file, kind, **options)
    return Image(file.getvalue())


def cosines(one: Matrix, other: Matrix) -> list[float]:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return list((one * other).sum(axis=1) / lengths)


def texts_of(engine: EmbeddingEngine, texts: list[str]) -> Matrix:
    return engine.run(engine.prepare(texts, truncate=True))


def reference_python() -> str:
    """A Python that has torch and transformers."""
    given = os.environ.get("REFERENCE_PYTHON", "")
    own = ROOT / ".venv-reference" / "bin" / "python"
    if not given and not own.exists():
        pytest.skip("no interpreter with torch and transformers: run scripts/install reference")
    return given or str(own)


def reference(paths: dict[str, Path], engine: ClipEngine, files: list[Image], tmp_path: Path) -> Any:
    """What transformers gives for `TEXTS` and for the files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for place, file in enumerate(files):
        (folder / f"{place:02}").write_bytes(file.data)
    ids = [np.asarray(prompt.content).tolist() for prompt in engine.prepare(TEXTS, truncate=True)]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    program = ROOT / "tests" / "reference" / "clip.py"
    model = paths["config.json"].parent
    arguments = [model, tmp_path / "ids.json", folder, tmp_path / "answer.npz"]
    subprocess.run([reference_python(), program, *arguments], check=True, capture_output=True)
    return np.load(tmp_path / "answer.npz")


def shapes() -> list[Image]:
    """Pictures of every shape, mode and format that transformers reads as we do."""
    upright = PIL.Image.Exif()
    files = [
        file_of(picture(n, size)) for n, size in enumerate([(60, 40), (40, 61), (7, 5), (1, 1), (32, 32), (400, 30)])
    ]
    for orientation in range(2, 9):
        upright[0x0112] = orientation
        files.append(file_of(picture(orientation, (101, 64)), "JPEG", exif=upright, quality=90))
    clear = picture(20).convert("RGBA")
    clear.putalpha(PIL.Image.linear_gradient("L").resize(clear.size))
    files += [file_of(clear), file_of(clear, "WEBP", lossless=True), file_of(picture(21).convert("CMYK"), "JPEG")]
    files += [file_of(picture(22).convert(mode)) for mode in ("L", "P", "LA", "1")]
    return [*files, file_of(picture(23), "GIF"), file_of(picture(24, (900, 700)), "JPEG", progressive=True)]


def test_texts_and_images_are_what_transformers_makes_of_them(
    engine: ClipEngine, spec: ClipSpec, paths: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    files = shapes()
    prompts = engine.prepare_images(files)
    truth = reference(paths, engine, files, tmp_path)
    int8 = open_clip(spec.model_copy(update={"precision": "int8"}), paths, cache=data / "cache")

    pixels = np.stack([np.asarray(prompt.pixels).reshape(-1) for prompt in prompts])

    assert np.allclose(pixels, truth["pixels"].reshape(len(files), -1), atol=1e-5)
    assert min(cosines(engine.run(prompts), truth["images"])) >= 0.9999
    assert min(cosines(texts_of(engine, TEXTS), truth["texts"])) >= 0.99999
    assert min(cosines(int8.run(prompts), truth["images"])) >= 0.99
    assert min(cosines(texts_of(int8, TEXTS), truth["texts"])) >= 0.99


def test_other_configs_are_followed_as_transformers_follows_them(
    spec: ClipSpec, paths: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, path in paths.items():
        (model / name).write_bytes(path.read_bytes())
    whole = json.loads(paths["config.json"].read_text())
    # 2, as old configs have it, stands for the highest id
    whole["text_config"] |= {"hidden_act": "gelu", "eos_token_id": 2}
    (model / "config.json").write_text(json.dumps(whole))
    moved = {name: model / name for name in paths}

    engine = open_clip(spec, moved, cache=tmp_path / "cache")

    truth = reference(moved, engine, [file_of(picture(1))], tmp_path)
    assert min(cosines(texts_of(engine, TEXTS), truth["texts"])) >= 0.9999


def test_texts_and_images_come_in_any_order_and_company(engine: ClipEngine) -> None:
    texts = engine.prepare(["a red cat", "otter", "a photo of the dog"], truncate=True)
    seen = engine.prepare_images([file_of(picture(n)) for n in range(3)])
    alone = np.concatenate([engine.run([prompt]) for prompt in (*texts, *seen)])

    mixed = engine.run([seen[1], texts[0], seen[0], texts[2], texts[1], seen[2]])

    assert np.allclose(mixed, alone[[4, 0, 3, 2, 1, 5]], atol=1e-5)
    assert min(cosines(mixed, alone[[4, 0, 3, 2, 1, 5]])) > 0.999999


def test_an_image_costs_its_patches_and_one(engine: ClipEngine) -> None:
    (prompt,) = engine.prepare_images([file_of(picture(1))])

    assert (prompt.tokens, prompt.truncated) == (PATCHES, False)
    assert prompt.pixels is not None
    assert prompt.pixels.shape == (3, 32, 32)


def test_a_long_text_is_cut_and_still_ends(engine: ClipEngine) -> None:
    (prompt,) = engine.prepare([TEXTS[2]], truncate=True)

    assert (prompt.tokens, prompt.truncated) == (16, True)
    assert np.asarray(prompt.content)[-1] == 63


def test_it_is_opened_by_its_card_and_sees(spec: ClipSpec, paths: dict[str, Path], data: Path) -> None:
    engine = open_engine(spec, paths, cache=data / "cache", max_pixels=1000)

    assert engine.label == "clip"
    assert isinstance(engine, ImageEngine)
    with pytest.raises(InvalidInput, match="1000 pixels are the most") as caught:
        engine.prepare_images([file_of(picture(1))])
    assert caught.value.param == "input"


async def test_an_embedder_takes_texts_token_ids_and_images_side_by_side(engine: ClipEngine, spec: ClipSpec) -> None:
    embedder = Embedder(spec, engine)
    files = [file_of(picture(n)) for n in range(6)]

    mixed = await embedder.embed([files[0], "otter", *files[1:], [9]])
    alone = [await embedder.embed([each]) for each in (files[0], "otter", files[5], [9])]

    assert mixed.tokens == (PATCHES, 3, *[PATCHES] * 5, 3)
    picked = mixed.vectors[[0, 1, 6, 7]]
    assert np.allclose(picked, np.concatenate([each.vectors for each in alone]), atol=1e-5)
    assert np.allclose(np.linalg.norm(mixed.vectors, axis=1), 1)
    embedder.close()


def test_a_closed_engine_says_so(spec: ClipSpec, paths: dict[str, Path], data: Path) -> None:
    engine = open_clip(spec, paths, cache=data / "cache")
    prompts = [*engine.prepare(["a"], truncate=True), engine.blank()]

    engine.close()
    engine.close()

    for prompt in prompts:
        with pytest.raises(EngineFailed, match="closed"):
            engine.run([prompt])


def test_a_card_of_other_dimensions_is_refused(spec: ClipSpec, paths: dict[str, Path], data: Path) -> None:
    with pytest.raises(EngineUnavailable, match="the model gives 24 dimensions, its card tiny-clip says 32"):
        open_clip(spec.model_copy(update={"dimensions": 32}), paths, cache=data / "cache")


def test_a_card_of_more_tokens_is_refused(spec: ClipSpec, paths: dict[str, Path], data: Path) -> None:
    with pytest.raises(EngineUnavailable, match="the model takes 20 tokens, its card tiny-clip says 77"):
        open_clip(spec.model_copy(update={"max_tokens": 77}), paths, cache=data / "cache")


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "config.json", "model.safetensors"])
def test_a_missing_file_is_named(spec: ClipSpec, paths: dict[str, Path], tmp_path: Path, name: str) -> None:
    rest = {other: path for other, path in paths.items() if other != name}

    with pytest.raises(EngineUnavailable, match=f"lists no.* {name}|none of {name}"):
        open_clip(spec, rest, cache=tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "siglip"}, "model_type 'siglip' is none of"),
        ({"text_config": {"hidden_act": "swiglu"}}, "text_config.hidden_act"),
        ({"projection_dim": 12}, "text_projection.weight is F32"),
    ],
)
def test_another_architecture_is_refused(
    spec: ClipSpec, changed: Callable[..., dict[str, Path]], tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineUnavailable, match=message):
        open_clip(spec, changed("config.json", **keys), cache=tmp_path / "cache")


def test_a_tower_of_another_size_than_the_pictures_is_refused(
    spec: ClipSpec, changed: Callable[..., dict[str, Path]], data: Path
) -> None:
    files = changed("preprocessor_config.json", crop_size=24)

    with pytest.raises(EngineUnavailable, match=r"the model sees 32 x 32 pixels, preprocessor_config\.json makes 24"):
        open_clip(spec, files, cache=data / "cache")


def test_a_tokenizer_that_ends_no_text_is_refused(
    spec: ClipSpec, changed: Callable[..., dict[str, Path]], data: Path
) -> None:
    with pytest.raises(EngineUnavailable, match="which token ends a text"):
        open_clip(spec, changed("tokenizer.json", post_processor=None), cache=data / "cache")


def test_both_forms_of_a_processor_are_read(changed: Callable[..., dict[str, Path]]) -> None:
    files = changed(
        "preprocessor_config.json", size={"shortest_edge": 48}, crop_size={"height": 32, "width": 32}, do_rescale=True
    )

    framing = read_framing(files["preprocessor_config.json"])

    assert (framing.edge, framing.crop, framing.scale) == (48, 32, 1 / 255)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"do_center_crop": False}, "do_center_crop"),
        ({"resample": 2}, "resample"),
        ({"size": {"height": 32, "width": 32}}, "size"),
        ({"crop_size": {"height": 32, "width": 24}}, "crop_size"),
        ({"size": 16}, "crop_size is larger than size"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std.0"),
        ({"image_mean": None}, "image_mean"),
    ],
)
def test_another_way_to_frame_a_picture_is_refused(
    changed: Callable[..., dict[str, Path]], keys: dict[str, Any], message: str
) -> None:
    files = changed("preprocessor_config.json", **keys)

    with pytest.raises(EngineUnavailable, match=f"preprocessor_config.json: .*{message}|{message}"):
        read_framing(files["preprocessor_config.json"])
