"""One device serves embeddings and retrieval together."""

__version__ = "0.1.0"
