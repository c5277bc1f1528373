"""What makes a remembered embedding another model's."""

import os
from pathlib import Path

from appliance.embedding.embedder import Embedder
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pull import ModelFiles
from appliance.embedding.registry import Registry
from appliance.embedding.spec import HashSpec, OnnxSpec


def test_another_file_of_the_owner_or_of_another_time_is_another_model(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    spec = OnnxSpec(name="own", engine="onnx", family="bert", dimensions=8, max_tokens=8, own=("model.onnx",))
    plain = HashSpec(name="plain", engine="hash", family="hash", dimensions=8, max_tokens=8)
    registry = Registry([spec, plain], default="own", files=files, open_engine=None, open_reranker=None)  # type: ignore[arg-type]  # nothing is opened
    place = files.folder(spec) / "model.onnx"
    place.parent.mkdir(parents=True)

    def told(content: bytes, modified: int) -> str:
        place.write_bytes(content)
        os.utime(place, ns=(modified, modified))
        return registry._identity(spec)

    assert len({told(b"a", 1), told(b"ab", 1), told(b"a", 2), registry._identity(plain)}) == 4
    assert told(b"a", 1) == told(b"a", 1)


def test_fingerprints_are_of_the_card_the_engine_and_the_identity() -> None:
    def fingerprint(identity: str = "", **changes: object) -> str:
        spec = HashSpec(name="one", engine="hash", family="hash", dimensions=64, max_tokens=8).model_copy(
            update=changes
        )
        embedder = Embedder(spec, HashingEngine(dimensions=64, max_tokens=8), identity=identity)
        embedder.close()
        return embedder.fingerprint

    alike = {fingerprint(), fingerprint(aliases=("another",)), fingerprint(description="told")}
    other = {fingerprint("files"), fingerprint(max_tokens=9), fingerprint(name="two")}

    assert len(alike) == 1
    assert len(alike | other) == 4
