"""Text to vectors: cards, engines, batching, and the embedder that joins them."""
