"""Any text encoder as a graph: a directory with tokenizer.json and model.onnx."""

from collections.abc import Sequence

from models.errors import MissingData, UnreadableData
from models.progress import Progress
from models.text.hf_dir import TOKENIZER, directory_of
from models.text.registry import PROVIDERS, TextOptions
from retrieval.errors import BundleError
from retrieval.text import OnnxText

GRAPH = "model.onnx"


@PROVIDERS.register("onnx")
def onnx(texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> OnnxText:
    """The graph in `text_dir` as it is. One that gives a state per token has its real tokens averaged.

    Raises:
        MissingData: there is no such graph.
        UnreadableData: onnxruntime cannot open it, or it has other inputs than a text graph has.
    """
    del texts, seed
    directory = directory_of(options)
    if not (directory / GRAPH).is_file():
        raise MissingData(f"{directory} holds no {GRAPH}; point text_dir at a directory with {TOKENIZER} and {GRAPH}")
    progress.say(f"onnx: {directory.name}")
    try:
        tokenizer = (directory / TOKENIZER).read_text()
        return OnnxText(tokenizer, (directory / GRAPH).read_bytes(), tokens=options.text_tokens)
    except (BundleError, ValueError) as error:
        raise UnreadableData(f"{directory}: {error}") from error
