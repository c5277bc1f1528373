"""Models that other servers run: OpenAI's API, Ollama's, and text-embeddings-inference's."""
