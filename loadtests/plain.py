"""The plain endpoint that the service is compared with: what one writes in an hour around the same ONNX model.

One request, one run of the model, one matrix product, no batching, no filters, no store, no metrics. It knows nothing
of this project's code: a graph, a matrix and a list of ids are all it is given.
"""

import argparse
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Asked(BaseModel):
    """The body."""

    history: list[str]
    k: int = 20


def create_app(graph: Path, vectors: Path, items: Path, *, window: int, threads: int) -> FastAPI:
    """The endpoint.

    Args:
        graph: takes `item_rows`, int64 (1, L), and gives float32 (1, D).
        vectors: float32, shape (N + 1, D); row 0 is padding.
        items: JSON with `ids` and `available`, N + 1 of each.
        window: newest items to read.
        threads: cores for the model, set as the service sets them, so that only the serving differs.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    table = np.load(vectors, allow_pickle=False)
    known = json.loads(items.read_text())
    ids: list[str] = known["ids"]
    gone = ~np.array(known["available"], dtype=bool)
    row_of = {item_id: row for row, item_id in enumerate(ids) if row}
    app = FastAPI()

    @app.post("/recommendations")
    def recommend(asked: Asked) -> dict[str, Any]:
        rows = [row_of[item_id] for item_id in asked.history if item_id in row_of]
        (query,) = session.run(None, {"item_rows": np.array([rows[-window:]], dtype=np.int64)})[0]
        scores = table @ query
        scores[gone] = -np.inf
        scores[rows] = -np.inf
        top = np.argpartition(-scores, asked.k - 1)[: asked.k]
        top = top[np.argsort(-scores[top], kind="stable")]
        return {"items": [{"item_id": ids[row], "score": float(scores[row])} for row in top]}

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves on a free port of the loopback interface, and prints it."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.plain")
    for name in ("graph", "vectors", "items"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args(arguments)
    app = create_app(given.graph, given.vectors, given.items, window=given.window, threads=given.threads)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"ready on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
