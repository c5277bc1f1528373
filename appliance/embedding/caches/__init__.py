"""Embeddings that were computed before: in memory, in a file, in a Redis server."""
