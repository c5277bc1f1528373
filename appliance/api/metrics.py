"""What the appliance counts, in a registry of its own, as Prometheus reads it."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from appliance.catalog.records import JobState
from appliance.embedding.embedder import Embeddings
from appliance.embedding.reranker import Scores

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_JOB_STATES: tuple[JobState, ...] = get_args(JobState)
_STATM = Path("/proc/self/statm")


class Metrics:
    """Counters, histograms and gauges, all named `appliance_…`.

    Its methods are plain callables, so that what is measured need not know Prometheus. Any thread may call them.
    Labels are routes, models, states and reasons: a fixed few each, never anything a caller wrote.
    """

    def __init__(self, *, version: str) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("http_requests", "Requests answered.", "route", "method", "code")
        self._request_seconds = self._histogram("http_request_seconds", "From request to last byte.", "route")
        self._rejected = self._counter("rejected", "Requests refused before a route saw them.", "reason")
        self._tokens = self._counter("embed_tokens", "Tokens embedded, special tokens included.", "model")
        self._inputs = self._counter("embed_inputs", "Inputs embedded.", "model")
        self._rerank_tokens = self._counter(
            "rerank_tokens", "Tokens read by rerankers, special tokens included.", "model"
        )
        self._pairs = self._counter("rerank_pairs", "Pairs of query and passage scored.", "model")
        self._truncated = self._counter("truncated_inputs", "Inputs and pairs whose end was cut off.", "model")
        self._answers = self._counter("answers", "Calls answered, and what answered them.", "model", "engine")
        self._restarts = self._counter("engine_restarts", "NPU processes begun anew.", "model", "reason")
        self._embed_seconds = self._histogram("embed_seconds", "From a call's inputs to its vectors.", "model")
        self._fallbacks = self._counter("fallbacks", "Calls that another model answered.", "model", "answered_by")
        self._engine_seconds = self._histogram("engine_call_seconds", "One batch inside the engine.", "model", "engine")
        self._padding = self._histogram(
            "embed_padding_ratio", "Share of a batch that is padding.", "model", buckets=_SHARES
        )
        self._batch = self._histogram("embed_batch_size", "Inputs of one batch.", "model", buckets=_INPUTS)
        self._cache_hits = self._counter("cache_hits", "Embeddings found in a layer of the cache.", "layer")
        self._cache_misses = self._counter("cache_misses", "Embeddings looked for in a layer in vain.", "layer")
        self._search_seconds = self._histogram("search_seconds", "Stages of a search.", "stage")
        self._search_results = self._histogram("search_results", "Matches of one search.", "mode", buckets=_INPUTS)
        self._ingested = self._counter("ingest_documents", "Documents that reached a state.", "state")
        self._gauges = {
            "queue_depth": self._gauge("queue_depth", "Inputs waiting for the engine."),
            "documents": self._gauge("documents", "Documents kept."),
            "chunks": self._gauge("chunks", "Chunks kept."),
            "cache_entries": self._gauge("cache_entries", "Embeddings remembered in memory."),
        }
        self._jobs = Gauge("jobs", "Jobs in a state.", ("state",), namespace="appliance", registry=self.registry)
        memory = self._gauge("process_resident_memory_bytes", "Resident memory of this process.")
        memory.set_function(resident_memory)
        Gauge("build_info", "Always 1.", ("version",), namespace="appliance", registry=self.registry).labels(
            version
        ).set(1)

    def answered(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the template, not the path."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """A request was refused: `host`, `origin`, `key`, `body`, `slow` or `busy`."""
        self._rejected.labels(reason).inc()

    def embedded(self, answer: Embeddings, seconds: float) -> None:
        """An embedder answered a call."""
        self._embed_seconds.labels(answer.model).observe(seconds)
        self._answers.labels(answer.model, answer.engine).inc()
        self._inputs.labels(answer.model).inc(len(answer.tokens))
        self._tokens.labels(answer.model).inc(sum(answer.tokens))
        self._truncated.labels(answer.model).inc(sum(answer.truncated))

    def reranked(self, answer: Scores) -> None:
        """A reranker answered a call."""
        self._answers.labels(answer.model, answer.engine).inc()
        self._pairs.labels(answer.model).inc(len(answer.tokens))
        self._rerank_tokens.labels(answer.model).inc(sum(answer.tokens))
        self._truncated.labels(answer.model).inc(sum(answer.truncated))

    def fell_back(self, model: str, answered_by: str) -> None:
        """A model was asked, and another one answered."""
        self._fallbacks.labels(model, answered_by).inc()

    def engine_called(self, model: str, engine: str, tokens: Sequence[int], seconds: float) -> None:
        """An engine ran one batch, of inputs with so many tokens each."""
        self._batch.labels(model).observe(len(tokens))
        if longest := max(tokens, default=0):
            self._padding.labels(model).observe(1 - sum(tokens) / (len(tokens) * longest))
        self._engine_seconds.labels(model, engine).observe(seconds)

    def engine_restarted(self, model: str, reason: str) -> None:
        """An NPU process was begun anew: `exit`, `failed`, `hang`, `load`, `memory`, or a signal's name."""
        self._restarts.labels(model, reason).inc()

    def cache_asked(self, layer: str, hits: int, misses: int) -> None:
        """A layer of the cache, `memory`, `disk` or `redis`, was asked for embeddings."""
        if hits:
            self._cache_hits.labels(layer).inc(hits)
        if misses:
            self._cache_misses.labels(layer).inc(misses)

    def searched(self, mode: str, *, seconds: float, results: int) -> None:
        """A search in this mode was answered."""
        self._search_seconds.labels("total").observe(seconds)
        self._search_results.labels(mode).observe(results)

    def ingested(self, state: str) -> None:
        """A document became `ready` or `failed`."""
        self._ingested.labels(state).inc()

    def follow(self, gauge: str, read: Callable[[], float]) -> None:
        """Ask `read` for a gauge, `documents` or such, at every scrape, from any thread; NaN if it raises."""

        def value() -> float:
            try:
                return read()
            except Exception:  # noqa: BLE001 - a store that is away must not hide every other figure
                return float("nan")

        self._gauges[gauge].set_function(value)

    def follow_jobs(self, read: Callable[[], Mapping[JobState, int]]) -> None:
        """Ask `read` how many jobs there are of each state at every scrape, from any thread; NaN if it raises."""

        def value(state: JobState) -> float:
            try:
                return read().get(state, 0)
            except Exception:  # noqa: BLE001 - as above
                return float("nan")

        for state in _JOB_STATES:
            self._jobs.labels(state).set_function(partial(value, state))

    def render(self) -> bytes:
        """The exposition text. Blocking: the gauges ask their sources."""
        return generate_latest(self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(name, told, labels, namespace="appliance", registry=self.registry)

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(name, told, namespace="appliance", registry=self.registry)

    def _histogram(self, name: str, told: str, *labels: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, told, labels, namespace="appliance", registry=self.registry, buckets=buckets)


def resident_memory() -> float:
    """Resident bytes of this process: now on Linux, the peak so far elsewhere."""
    if _STATM.exists():
        return float(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
