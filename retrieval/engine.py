"""The engine: what a bundle computes with, whatever becomes of its catalog: graphs, and what describes new items."""

from dataclasses import dataclass

import numpy as np

from retrieval.bundle import DESCRIBER, RANKER, Bundle
from retrieval.codes import CodeTable
from retrieval.decoder import CodedHistories, OnnxDecoder, ParallelDecoder
from retrieval.describer import Describer
from retrieval.encoder import OnnxEncoder
from retrieval.errors import BundleForeign, BundleTorn
from retrieval.features import Candidates, FeatureTables
from retrieval.generative import Generation
from retrieval.inputs import Request, Tables
from retrieval.ranking import OnnxRanker, Ranking
from retrieval.sequences import EMPTY, FloatArray, History

# What `item_vectors:<name>` in a graph's inputs gathers: the vectors that are searched, or those of the items' texts.
ITEM_TABLE = "items"
TEXT_TABLE = "text"


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """What a bundle computes with, whatever becomes of its catalog.

    Attributes:
        encoder: of histories; None where the bundle only generates.
        decoder: of semantic ids; None where it only retrieves.
        generation: how to search what the decoder says.
        describer: makes semantic ids of new items' texts.
        ranker: over the bundle's own items; None where it has none.
    """

    encoder: OnnxEncoder | None = None
    decoder: OnnxDecoder | ParallelDecoder | None = None
    generation: Generation | None = None
    describer: Describer | None = None
    ranker: OnnxRanker | None = None

    @classmethod
    def load(cls, bundle: Bundle, *, threads: int = 1, device: str = "cpu") -> "Engine":
        """What a bundle holds, after each graph ran once.

        Args:
            bundle: see there.
            threads: cores that one run may use.
            device: `cpu` or `cuda`.

        Raises:
            BundleError: a file is unreadable, or the parts do not fit each other.
        """
        encoder = _encoder(bundle, threads, device) if "encoder" in bundle.manifest.graphs else None
        ranker = open_ranker(bundle, threads=threads, device=device)
        if bundle.manifest.kind != "generative":
            return cls(encoder, ranker=ranker)
        settings = Generation.parse(bundle.manifest.generation)
        codes = bundle.codes
        if codes is None or not codes.coded.any():
            raise BundleTorn("no item of the bundle has a code, so nothing can be generated; export it again")
        if codes.vocabulary != settings.vocabulary:
            raise BundleForeign(
                f"levels have {list(codes.vocabulary)} codewords in the code table and {list(settings.vocabulary)} in "
                "the manifest; export the bundle again"
            )
        decoder = _decoder(bundle, settings, codes, threads, device)
        return cls(encoder, decoder, settings, _describer(bundle, codes, threads), ranker)


def tables(vectors: FloatArray, text_vectors: FloatArray | None, codes: CodeTable | None) -> Tables:
    """What the graphs may gather from, over one catalog."""
    texts = {} if text_vectors is None else {TEXT_TABLE: text_vectors}
    return Tables({ITEM_TABLE: vectors, **texts}, codes)


def _encoder(bundle: Bundle, threads: int, device: str) -> OnnxEncoder:
    """The encoder, after it has encoded one history."""
    graph, vectors = bundle.manifest.graphs["encoder"], bundle.item_vectors
    encoder = OnnxEncoder(
        bundle.path / graph.file,
        names=graph.inputs,
        length=bundle.manifest.window,
        tables=tables(vectors, bundle.text_vectors, bundle.codes),
        threads=threads,
        device=device,
    )
    width = encoder.encode([Request(History.of_rows([1]))]).shape[-1]
    if width != vectors.shape[1]:
        raise BundleForeign(
            f"{graph.file} makes query embeddings of width {width}, the item vectors have {vectors.shape[1]}; "
            "they come from different trainings, export the bundle again"
        )
    return encoder


def _decoder(
    bundle: Bundle, settings: Generation, codes: CodeTable, threads: int, device: str
) -> OnnxDecoder | ParallelDecoder:
    """The decoder, after it has written the codes of one item."""
    graphs, path = bundle.manifest.graphs, bundle.path
    is_parallel = "distributions" in graphs
    reads = graphs["distributions" if is_parallel else "prefill"]
    length = settings.window or bundle.manifest.window
    gathered = tables(bundle.item_vectors, bundle.text_vectors, codes)
    histories = CodedHistories(reads.inputs, length, gathered, trained=len(bundle.catalog))
    file, sizes = path / reads.file, settings.vocabulary
    decoder: OnnxDecoder | ParallelDecoder
    if is_parallel:
        decoder = ParallelDecoder(file, histories=histories, vocabulary=sizes, threads=threads, device=device)
    else:
        step = path / graphs["step"].file
        decoder = OnnxDecoder(file, step, histories=histories, vocabulary=sizes, threads=threads, device=device)
    row = int(codes.coded.argmax())
    try:
        memory = decoder.prefill([Request(History.of_rows([row]))])
        said = [
            decoder.step(memory, codes.codes[None, row : row + 1, :level].astype(np.int64))
            for level in range(settings.levels)
        ]
    except Exception as error:  # onnxruntime raises a dozen undocumented classes here
        raise BundleForeign(f"{reads.file} does not run on a history of codes ({error}); export it again") from error
    for level, log_probs in enumerate(said):
        total = float(np.exp(log_probs.astype(np.float64)).sum())
        if log_probs.shape != (1, 1, sizes[level]) or not abs(total - 1) < 1e-2:
            raise BundleForeign(
                f"{reads.file} gives log-probabilities of shape {log_probs.shape} for level {level}, whose "
                f"probabilities sum to {total:g}; (1, 1, {sizes[level]}) and 1 were expected, export it again"
            )
    return decoder


def open_ranker(bundle: Bundle, *, threads: int = 1, device: str = "cpu") -> OnnxRanker | None:
    """The ranker, after it has ranked two lists; None where the bundle has none.

    Raises:
        BundleError: it does not fit its bundle.
    """
    if bundle.statistics is None:
        return None
    settings, graph = Ranking.parse(bundle.manifest.ranking), bundle.manifest.graphs[RANKER]
    tables = FeatureTables.of(settings.features, bundle.statistics, bundle.catalog, bundle.item_vectors)
    file = bundle.path / graph.file
    ranker = OnnxRanker(file, names=graph.inputs, settings=settings, tables=tables, threads=threads, device=device)
    lists = [
        Candidates(Request(history), np.array([1]), np.array([np.nan], dtype=np.float32))
        for history in (History.of_rows([1]), EMPTY)
    ]
    try:
        said = np.concatenate(ranker.uncalibrated().rank(lists))
    except Exception as error:  # onnxruntime raises a dozen undocumented classes here
        raise BundleForeign(f"{graph.file} does not run on these features ({error}); export it again") from error
    if not ((said >= 0) & (said <= 1)).all():
        raise BundleForeign(f"{graph.file} says {said.ravel().tolist()}, which are no probabilities; export it again")
    return ranker


def _describer(bundle: Bundle, codes: CodeTable, threads: int) -> Describer | None:
    """The describer, after it was found to make such codes and vectors; None where the bundle has none."""
    if not any(name.startswith(f"{DESCRIBER}/") for name in bundle.manifest.files):
        return None
    describer = Describer.load(bundle.path / DESCRIBER, threads=threads)
    width, own = describer.vectors_for([{}]).shape[1], bundle.text_vectors
    if describer.vocabulary != codes.vocabulary or (own is not None and own.shape[1] != width):
        raise BundleForeign(
            f"the describer makes codes of levels {list(describer.vocabulary)} from vectors of width {width}, which "
            "are not those of the bundle; export it again"
        )
    return describer
