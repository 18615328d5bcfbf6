"""The outside judge: weights that others trained and released, in our encoder, through our evaluation.

The figures were made by the publisher of the weights and by an independent encoder; they are rounded to four digits.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.encoders.sasrec import from_icsrec
from models.evaluate import evaluate
from models.events import read_log
from models.histories import Histories, catalog_from_log
from models.scoring import TorchScorer
from models.splits import leave_one_out

pytestmark = [pytest.mark.data, pytest.mark.train]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and far slower where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("weights", "layout", "events", "expected"),
    [
        ("icsrec_beauty", "s3rec", "amazon-beauty-2014/Beauty.txt", (0.0698, 0.0494, 0.0960, 0.0579)),
        ("icsrec_ml-1m", "sasrec-txt", "ml-1m/sasrec_ml-1m.txt.gz", (0.2445, 0.1710, 0.3368, 0.2007)),
    ],
)
def test_released_weights_reach_their_published_figures(
    shared_data: Callable[[str], Path], weights: str, layout: str, events: str, expected: tuple[float, ...]
) -> None:
    with np.load(shared_data(f"checkpoints/{weights}.npz"), allow_pickle=False) as stored:
        model = from_icsrec(dict(stored.items()))
    log = read_log(layout, shared_data(events))
    catalog = catalog_from_log(log)
    # Their rows are the numbers in the file; so are ours, since rows follow the ids.
    assert [int(item_id) for item_id in catalog.ids[1:]] == list(range(1, len(catalog) + 1))
    cases = leave_one_out(Histories.from_log(log, catalog, ())).test
    report = evaluate(TorchScorer(model, name=weights), cases, n_items=len(catalog), ks=(5, 10))
    reached = [report.measures[name].value for name in ("recall@5", "ndcg@5", "recall@10", "ndcg@10")]
    np.testing.assert_allclose(reached, expected, atol=0.0002)
