"""What people use today: sentence-transformers behind FastAPI. Runs in an environment of its own."""

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer


class Body(BaseModel):
    """Texts to embed."""

    input: list[str]


def create_app(folder: Path) -> FastAPI:
    """The twenty lines that every tutorial shows."""
    transformer = Transformer(str(folder), max_seq_length=256)
    model = SentenceTransformer(modules=[transformer, Pooling(384, pooling_mode="mean"), Normalize()], device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, list[list[float]]]:
        return {"embeddings": model.encode(body.input).tolist()}

    return app


def main() -> None:
    """Serve the model in `folder`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.folder), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
