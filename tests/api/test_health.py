"""Alive, ready, counted."""

import threading
from dataclasses import dataclass, field

import httpx
import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from appliance import __version__
from appliance.api import health
from appliance.api.metrics import Metrics, resident_memory
from appliance.embedding.embedder import Embeddings


@dataclass
class Appliance:
    """As much of one as these routes look at."""

    components: dict[str, str] = field(default_factory=lambda: {"database": "ok", "model": "ok"})
    metrics: Metrics = field(default_factory=lambda: Metrics(version="1.2.3"))

    def ready(self) -> dict[str, str]:
        return self.components


def watched(appliance: Appliance) -> TestClient:
    app = FastAPI()
    app.include_router(health.router)
    app.state.appliance = appliance
    return TestClient(app)


def test_health_is_alive_and_says_its_version() -> None:
    answer = watched(Appliance(components={"database": "gone"})).get("/health")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": __version__}


def test_ready_is_200_only_when_every_component_is_ok() -> None:
    appliance = Appliance()
    client = watched(appliance)

    fine = client.get("/ready")
    appliance.components = {"database": "ok", "model": "hash is being loaded"}
    missing = client.get("/ready")

    assert (fine.status_code, fine.json()["status"]) == (200, "ready")
    assert (missing.status_code, missing.json()["status"]) == (503, "not ready")
    assert missing.json()["components"]["model"] == "hash is being loaded"
    assert missing.headers["retry-after"] == "1"


def test_metrics_tell_what_was_counted_in_prometheus_text() -> None:
    metrics = Metrics(version="1.2.3")
    metrics.answered(route="/v1/embeddings", method="POST", status=200, seconds=0.02)
    metrics.answered(route="none", method="BREW-1234", status=405, seconds=0.001)
    metrics.embedded(Embeddings("hash", "hash", np.eye(3, dtype=np.float32), (4, 8, 9), (False, True, False)), 0.02)
    metrics.engine_called("hash", "hash", [4, 8, 9], 0.004)
    metrics.searched("vector", seconds=0.002, results=3)
    metrics.fell_back("a", "hash")
    metrics.ingested("ready")
    metrics.rejected("busy")
    metrics.follow("documents", lambda: 7)
    metrics.follow("queue_depth", lambda: 2)

    answer = watched(Appliance(metrics=metrics)).get("/metrics")

    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert {
        'appliance_http_requests_total{code="200",method="POST",route="/v1/embeddings"} 1.0',
        'appliance_http_requests_total{code="405",method="other",route="none"} 1.0',
        'appliance_http_request_seconds_count{route="/v1/embeddings"} 1.0',
        'appliance_embed_inputs_total{model="hash"} 3.0',
        'appliance_embed_tokens_total{model="hash"} 21.0',
        'appliance_truncated_inputs_total{model="hash"} 1.0',
        'appliance_engine_call_seconds_count{engine="hash",model="hash"} 1.0',
        'appliance_embed_seconds_sum{model="hash"} 0.02',
        'appliance_embed_padding_ratio_bucket{le="0.3",model="hash"} 1.0',
        'appliance_fallbacks_total{answered_by="hash",model="a"} 1.0',
        'appliance_search_results_sum{mode="vector"} 3.0',
        'appliance_embed_batch_size_sum{model="hash"} 3.0',
        'appliance_search_seconds_count{stage="total"} 1.0',
        'appliance_ingest_documents_total{state="ready"} 1.0',
        'appliance_rejected_total{reason="busy"} 1.0',
        "appliance_documents 7.0",
        "appliance_chunks 0.0",
        "appliance_queue_depth 2.0",
        'appliance_build_info{version="1.2.3"} 1.0',
    } <= set(lines)


def test_a_source_that_fails_does_not_hide_the_other_figures() -> None:
    def broken() -> float:
        raise OSError("the disk is away")

    metrics = Metrics(version="0")
    metrics.follow("documents", broken)

    text = watched(Appliance(metrics=metrics)).get("/metrics").text
    assert "appliance_documents NaN" in text
    assert "appliance_build_info" in text


def test_gauges_are_read_off_the_loop() -> None:
    seen: list[str] = []

    def count() -> float:
        seen.append(threading.current_thread().name)
        return 1.0

    metrics = Metrics(version="0")
    metrics.follow("chunks", count)

    watched(Appliance(metrics=metrics)).get("/metrics")

    assert seen
    assert not any("portal" in name or name == "MainThread" for name in seen)


def test_two_registries_do_not_meet() -> None:
    one, other = Metrics(version="0"), Metrics(version="0")
    one.rejected("busy")

    assert other.registry.get_sample_value("appliance_rejected_total", {"reason": "busy"}) is None


def test_resident_memory_is_that_of_a_python_process() -> None:
    assert 10e6 < resident_memory() < 20e9


def test_a_running_appliance_tells_what_it_did(client: httpx.Client) -> None:
    embedded = client.post("/v1/embeddings", json={"model": "hash", "input": ["one", "two"]})
    client.get("/documents/a-canary")

    text = client.get("/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("appliance_http_requests_total")]
    assert embedded.status_code == 200
    assert any('code="200",method="POST",route="/v1/embeddings"' in line for line in counted)
    assert any('route="/documents/{' in line for line in counted)
    assert 'appliance_embed_inputs_total{model="hash"}' in text
    assert 'appliance_engine_call_seconds_count{engine="hash",model="hash"}' in text
    assert "canary" not in text


def test_a_running_appliance_is_ready_and_answers_head(client: httpx.Client) -> None:
    assert client.get("/ready").json()["status"] == "ready"
    for path in ("/", "/health", "/ready", "/metrics", "/api/tags", "/api/version", "/v1/models", "/collections"):
        head = client.head(path)
        assert (path, head.status_code, head.content) == (path, 200, b"")
