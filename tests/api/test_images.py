"""Images over HTTP: embedded, put in, found."""

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import PIL.Image
import pytest

from appliance.api import openai


def picture(seed: int, size: tuple[int, int] = (60, 44)) -> PIL.Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return PIL.Image.fromarray(cells).resize(size, PIL.Image.Resampling.BICUBIC)


def saved(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{coded(data)}"


CAT, DOG = saved(picture(1)), saved(picture(2), "JPEG", quality=95)

BAD: dict[str, tuple[bytes, str]] = {
    "no image": (b"these bytes are no image", "no image that can be read"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
    "bmp": (saved(picture(1), "BMP"), "no image that can be read"),
    "truncated": (CAT[: len(CAT) // 2], "damaged or cut short"),
    "truncated jpeg": (DOG[: len(DOG) // 2], "damaged or cut short"),
    "bomb": (saved(PIL.Image.new("1", (10_000, 10_000))), "10000 x 10000 pixels; 50000000 pixels are the most"),
}

UNUSUAL: dict[str, bytes] = {
    "one pixel": saved(PIL.Image.new("RGB", (1, 1), "red")),
    "animated": saved(picture(3), "GIF", save_all=True, append_images=[picture(4)]),
    "cmyk": saved(picture(5).convert("CMYK"), "JPEG"),
    "16 bits": saved(PIL.Image.fromarray(np.asarray(picture(6).convert("L")).astype(np.uint16) * 257)),
    "webp": saved(picture(7), "WEBP"),
    "palette": saved(picture(8).convert("P"), transparency=0),
}


@pytest.fixture(scope="module")
def seeing(start_seeing: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=start_seeing.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def start_seeing(
    serving: Callable[..., Any], bring_clip: Callable[[Path], None], tmp_path_factory: Any
) -> Iterator[Any]:
    data = tmp_path_factory.mktemp("seeing")
    bring_clip(data)
    server = serving(data)
    yield server
    server.stop()


@pytest.fixture
def album(seeing: httpx.Client) -> str:
    name = f"album{uuid4().hex}"
    assert seeing.post("/collections", json={"name": name, "model": "tiny-clip"}).status_code == 201
    return name


def embed(client: httpx.Client, given: Any, model: str = "tiny-clip", **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": model, "input": given, **body})


def vectors(answer: httpx.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    return [each["embedding"] for each in answer.json()["data"]]


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text[:300]
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "input")
    message: str = error["message"]
    return message


def put(client: httpx.Client, collection: str, *files: tuple[str, bytes, str], **fields: Any) -> httpx.Response:
    return client.post(
        "/documents", data={"collection": collection, **fields}, files=[("file", each) for each in files]
    )


def test_every_way_to_write_an_image_gives_one_vector(seeing: httpx.Client) -> None:
    ways: list[Any] = [
        url(CAT),
        {"image": url(CAT)},
        {"image": coded(CAT)},
        {"image": {"url": url(CAT)}},
        {"type": "image", "image": coded(CAT)},
        {"type": "image_url", "image_url": {"url": url(CAT)}},
        {"image_url": url(CAT)},
        url(CAT, "jpeg"),
        f"data:image/png;name=cat.png;base64,{coded(CAT)}",
    ]

    together = vectors(embed(seeing, ways))
    alone = [vectors(embed(seeing, way))[0] for way in (ways[0], ways[1], [ways[5]])]

    for vector in (*together, *alone):
        assert np.allclose(vector, together[0], atol=1e-6)
    assert np.linalg.norm(together[0]) == pytest.approx(1)


def test_texts_and_images_are_mixed_in_their_order(seeing: httpx.Client) -> None:
    answer = embed(seeing, [{"text": "a red cat"}, url(CAT), "a red cat", {"type": "text", "text": "dog"}, url(DOG)])

    first, cat, second, _, dog = vectors(answer)
    assert np.allclose(first, second, atol=1e-6)
    assert not np.allclose(cat, dog, atol=1e-3)
    assert answer.headers["x-appliance-engine"] == "clip"
    assert answer.json()["usage"]["prompt_tokens"] == 5 + 17 + 5 + 3 + 17
    assert vectors(embed(seeing, [[3, 4, 5]], encoding_format="float"))


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_image_is_embedded(seeing: httpx.Client, name: str) -> None:
    assert len(vectors(embed(seeing, url(UNUSUAL[name])))) == 1


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused(seeing: httpx.Client, name: str) -> None:
    data, message = BAD[name]

    assert message in refusal(embed(seeing, ["a text", {"image": coded(data)}]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": "https://example.org/cat.png"}, "not fetched"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/cat.png"}}, "not fetched"),
        ({"image": "file:///etc/passwd"}, "not fetched"),
        ({"image": "no base64 at all!"}, "not base64"),
        ({"image": "data:image/png;base64,abc"}, "not base64"),
        ({"image": "data:image/png,abc"}, "must be base64"),
        ({"image": "data:text/plain;base64,eA=="}, "not of an image"),
        ({"image": ""}, "the image is empty"),
        ({"image": "data:image/png;base64,"}, "the image is empty"),
        ({"image": 7}, "An object must be"),
        ({"image": url(CAT), "text": "x"}, "An object must be"),
        ({"image": "A" * 28_000_000}, "larger than 20 MiB"),
        ([{"image": "eA=="}] * (openai.MAX_IMAGES + 1), "64 images at most"),
        ([{"image": url(CAT)}, [1, 2]], "texts and images only, or token ids only"),
    ],
)
def test_what_cannot_be_an_image_is_refused(seeing: httpx.Client, given: Any, message: str) -> None:
    assert message in refusal(embed(seeing, given))


def test_a_model_of_texts_refuses_an_image_in_any_form(seeing: httpx.Client) -> None:
    for given in (url(CAT), {"image": coded(CAT)}):
        assert "hash embeds texts, not images" in refusal(embed(seeing, given, model="hash"))


def test_a_text_that_speaks_of_data_urls_is_a_text(seeing: httpx.Client) -> None:
    assert len(vectors(embed(seeing, ["data:text/plain;base64,eA==", "a data:image/png;base64, URL"], "hash"))) == 2


def test_an_image_becomes_a_document_that_its_name_and_its_likeness_find(seeing: httpx.Client, album: str) -> None:
    files = [(f"holiday_{n}.png", saved(picture(n)), "image/png") for n in range(4)]
    files.append(("otters at sea.jpg", saved(picture(9), "JPEG", quality=95), "image/jpeg"))
    ids = [f"picture/{n}" for n in range(5)]

    answer = put(seeing, album, *files, id=ids, metadata='{"year": 2024}')

    assert answer.status_code == 201, answer.text
    assert {each["chunks"] for each in answer.json()["documents"]} == {1}
    document = seeing.get("/documents/picture/4", params={"collection": album}).json()
    assert (document["media_type"], document["title"], document["text"]) == ("image/jpeg", *["otters at sea.jpg"] * 2)
    expected = {"year": 2024, "source": "otters at sea.jpg", "format": "jpeg", "width": 60, "height": 44}
    assert document["metadata"] == expected
    query = {"collection": album, "q": "otters", "mode": "keyword"}
    assert [match["document"] for match in seeing.get("/search", params=query).json()["matches"]] == ["picture/4"]
    for place, (_, data, _) in enumerate(files):
        found = seeing.post("/search", json={"collection": album, "image": coded(data), "k": 5}).json()
        assert found["mode"] == "vector"
        assert found["matches"][0]["document"] == ids[place]
        assert found["matches"][0]["score"] == pytest.approx(1, abs=1e-5)
        assert len(found["matches"]) == 5


def test_a_text_finds_images_in_the_order_of_their_cosines(seeing: httpx.Client, album: str) -> None:
    files = [(f"{n}.png", saved(picture(n)), "image/png") for n in range(5)]
    put(seeing, album, *files, id=[str(n) for n in range(5)])
    asked, *seen = vectors(embed(seeing, ["a photo of the red cat", *(url(data) for _, data, _ in files)]))
    cosines = np.array(seen) @ np.array(asked)

    query = {"collection": album, "q": "a photo of the red cat", "mode": "vector"}
    matches = seeing.get("/search", params=query).json()["matches"]

    assert [int(each["document"]) for each in matches] == list(np.argsort(-cosines))
    assert [each["score"] for each in matches] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)


def test_an_image_and_words_are_looked_for_together(seeing: httpx.Client, album: str) -> None:
    files = [(name, saved(picture(n)), "image/png") for n, name in enumerate(["badger.png", "whale.png"])]
    put(seeing, album, *files, id=["badger", "whale"])

    body = {"collection": album, "image": url(files[0][1]), "q": "whale", "where": {"format": "png"}}
    answer = seeing.post("/search", json=body).json()

    matches = {each["document"]: each for each in answer["matches"]}
    assert answer["mode"] == "hybrid"
    assert (matches["badger"]["vector_rank"], matches["badger"]["keyword_rank"]) == (1, None)
    assert matches["whale"]["keyword_rank"] == 1


def test_images_and_texts_lie_in_one_collection(seeing: httpx.Client, album: str) -> None:
    answer = put(seeing, album, ("a.png", CAT, "image/png"), ("b.txt", b"Otters at sea.", "text/plain"))

    assert answer.status_code == 201
    query = {"collection": album, "q": "otter", "mode": "vector"}
    assert len(seeing.get("/search", params=query).json()["matches"]) == 2


@pytest.mark.parametrize("declared", ["", "application/octet-stream", "image/gif", "image/png"])
def test_the_bytes_say_what_an_image_is(seeing: httpx.Client, album: str, declared: str) -> None:
    answer = put(seeing, album, ("x", DOG, declared), id="dog")

    assert answer.status_code == 201, answer.text
    assert seeing.get("/documents/dog", params={"collection": album}).json()["media_type"] == "image/jpeg"


def test_the_same_image_again_changes_nothing(seeing: httpx.Client, album: str) -> None:
    first, again = (put(seeing, album, ("x.png", CAT, "image/png")).json()["documents"][0] for _ in range(2))

    assert first["id"] == again["id"]
    assert (first["change"], again["change"]) == ("created", "unchanged")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_as_a_document_and_its_neighbour_is_not(
    seeing: httpx.Client, album: str, name: str
) -> None:
    data, message = BAD[name]

    alone = put(seeing, album, ("bad", data, "image/png"))
    together = put(seeing, album, ("bad", data, "image/png"), ("good.png", CAT, "image/png"))

    assert alone.status_code == 422
    assert message in alone.json()["detail"]
    assert together.status_code == 207
    assert [each["state"] for each in together.json()["documents"]] == ["refused", "ready"]


def test_a_collection_of_a_text_model_refuses_images_and_says_why(seeing: httpx.Client) -> None:
    name = f"texts{uuid4().hex}"
    seeing.post("/collections", json={"name": name, "model": "hash"}).raise_for_status()

    for declared in ("image/png", "application/octet-stream"):
        answer = put(seeing, name, ("x.png", CAT, declared))
        assert answer.status_code == 422
        assert "the model of this collection embeds texts only" in answer.json()["detail"]
    asked = seeing.post("/search", json={"collection": name, "image": url(CAT)})
    assert (asked.status_code, asked.json()["param"]) == (422, "image")
    assert "hash, which embeds texts, not images" in asked.json()["detail"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "q"),
        ({"image": "https://example.org/x.png"}, "image"),
        ({"image": "!"}, "image"),
        ({"image": coded(b"no image")}, "image"),
        ({"image": coded(CAT[:100])}, "image"),
        ({"image": url(CAT), "mode": "keyword"}, "mode"),
        ({"image": url(CAT), "mode": "hybrid"}, "mode"),
        ({"image": url(CAT), "mode": "vector", "q": "x"}, "mode"),
        ({"image": url(CAT), "q": " "}, "q"),
        ({"image": url(CAT), "rerank": True}, "rerank"),
        ({"image": url(CAT), "reranker": "x"}, "rerank"),
        ({"image": 7}, "image"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    seeing: httpx.Client, album: str, body: dict[str, Any], param: str
) -> None:
    answer = seeing.post("/search", json={"collection": album, **body})

    assert answer.status_code == 422, answer.text
    assert answer.json()["param"] == param


def test_max_pixels_is_a_setting(start: Callable[..., Any], bring_clip: Callable[[Path], None], tmp_path: Path) -> None:
    bring_clip(tmp_path)
    server = start(data=tmp_path, model="tiny-clip", max_pixels=10_000)

    with httpx.Client(base_url=server.url, timeout=30) as client:
        answer = embed(client, url(saved(picture(1, (200, 100)))))
        document = put(client, "default", ("x.png", saved(picture(1, (200, 100))), "image/png"))

    assert "200 x 100 pixels; 10000 pixels are the most" in refusal(answer)
    assert document.status_code == 422
    assert "10000 pixels are the most" in document.json()["detail"]


def test_ollama_s_routes_take_texts_alone(seeing: httpx.Client) -> None:
    answer = seeing.post("/api/embed", json={"model": "tiny-clip", "input": "a red cat", "images": [coded(CAT)]})

    assert len(answer.json()["embeddings"]) == 1


def test_the_documentation_names_images(seeing: httpx.Client) -> None:
    paths = seeing.get("/openapi.json").json()["paths"]

    schema = paths["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "data URL" in str(schema["properties"]["image"])
    assert "q" not in schema.get("required", [])
