"""A copy of a served model, made from nothing but its answers: how much a thief gets for how many questions.

Made-up histories are sent, the lists that come back are learnt, and the copy's lists are compared with the original's
on histories of real users, which the thief never saw. `autoregressive` takes as the next item of a history one of those
that were just recommended, any with the same chance; `random` takes any item. Scores are not used, so hiding them hides
nothing. The controls are a popular list and the copy before it has learnt.

Source:
    Yue, He, Zeng and McAuley (2021), "Black-Box Attacks on Sequential Recommenders via Data-Free Model Extraction",
    RecSys, sections 4.1 and 4.2, with these deviations: all prefixes of a history are learnt in one pass; the length of
    a run is a number of steps, so that few histories are not learnt less; the best step is the one that agrees most on
    the last prefix of each history, which is not learnt.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models import metrics
from models.encoders.sasrec import SASRec, SASRecConfig
from models.errors import InvalidOption
from models.histories import Histories
from models.progress import Progress
from models.scoring import TorchScorer
from models.splits import Cases
from models.victim import CutOff, Victim
from retrieval import recommenders
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.filters import NO_FILTER
from retrieval.inputs import Request
from retrieval.queries import Query
from retrieval.sequences import PAD_ROW, FloatArray, History, IntArray

ARMS = ("autoregressive", "random")
MARGIN = 0.5
JUDGED_AT = (1, 10)  # list lengths of the agreement
JUDGE_EVERY = 100  # steps
BATCH = 64  # histories at once when lists are made
DAY_S = 86_400


@dataclass(frozen=True)
class Attack:
    """What is asked, and how it is learnt.

    Attributes:
        arm: how histories are made up.
        k: length of the lists.
        sequences: histories at most.
        length: items of each; a history costs as many questions.
        at_once: histories under way together.
        steps: of learning.
        batch: histories per step.
        seed: of everything drawn.
        threads: cores that torch may use.
    """

    arm: str = "autoregressive"
    k: int = 100
    sequences: int = 200
    length: int = 20
    at_once: int = 16
    steps: int = 1_000
    batch: int = 16
    seed: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        if self.arm not in ARMS:
            raise InvalidOption(f"arm {self.arm!r} is none of {', '.join(ARMS)}")
        for name in ("sequences", "at_once", "steps", "batch", "threads"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("k", "length"):  # a list has an order, and the last prefix judges what the others taught
            if getattr(self, name) < 2:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 2")


@dataclass(frozen=True, eq=False)
class Loot:
    """Made-up histories and what was answered to each prefix of them.

    Attributes:
        rows: int64, shape (S, M). Padded on the right where a history was cut off.
        lists: int64, shape (S, M, k). To the prefix that ends there; PAD_ROW where nothing came.
        cut_off: what ended it, None where it went to its end.
    """

    rows: IntArray
    lists: IntArray
    cut_off: str | None = None

    @property
    def questions(self) -> int:
        """How many lists were answered."""
        return int((self.lists[:, :, 0] != PAD_ROW).sum())

    def first(self, sequences: int) -> "Loot":
        """What so many histories would have brought."""
        return replace(self, rows=self.rows[:sequences], lists=self.lists[:sequences])


def rob(victim: Victim, catalog: Catalog, attack: Attack, progress: Progress) -> Loot:
    """Asks, until all is asked or the service answers no more. The ids of the catalogue are known: shops show them."""
    rows = np.full((attack.sequences, attack.length), PAD_ROW, dtype=np.int64)
    lists = np.full((attack.sequences, attack.length, attack.k), PAD_ROW, dtype=np.int64)
    cut_off: list[str] = []

    def ask(number: int) -> None:
        rng = np.random.default_rng((attack.seed, number))
        following = int(rng.integers(1, len(catalog) + 1))
        for place in range(attack.length):
            if cut_off:
                return
            rows[number, place] = following
            try:
                answered = victim.recommend([catalog.ids[row] for row in rows[number, : place + 1]], attack.k)
            except CutOff as end:
                cut_off.append(end.code)
                return
            found = catalog.rows(answered)
            lists[number, place, : len(found)] = found
            choice = found if attack.arm == "autoregressive" else np.arange(1, len(catalog) + 1)
            following = int(rng.choice(choice))

    with ThreadPoolExecutor(attack.at_once) as pool:
        asked = pool.map(ask, range(attack.sequences))
        for _ in progress.bar(range(attack.sequences), f"{attack.arm}, lists of {attack.k}", unit="history"):
            next(asked)
    return Loot(rows, lists, cut_off[0] if cut_off else None)


def ranking_loss(scores: Tensor, lists: Tensor, outside: Tensor) -> Tensor:
    """Each item of a list above the next one, and above an item outside the list, by a margin.

    mean max(0, m - (s_r - s_{r+1})) + mean max(0, m - (s_r - s_out))

    Args:
        scores: float32, shape (P, N + 1).
        lists: int64, shape (P, k). PAD_ROW ends a list that is shorter.
        outside: int64, shape (P, k). Those of them that are in the list do not count.

    Source:
        Yue et al. (2021), equation 5.
    """
    listed = scores.gather(1, lists)  # (P, k)
    is_listed = torch.zeros_like(scores, dtype=torch.bool).scatter(1, lists, True)
    real = lists != PAD_ROW
    falls = F.relu(MARGIN - (listed[:, :-1] - listed[:, 1:]))[real[:, 1:]]
    apart = F.relu(MARGIN - (listed - scores.gather(1, outside)))[real & ~is_listed.gather(1, outside)]
    return falls.mean() + apart.mean()


def copy_of(loot: Loot, items: int, attack: Attack, progress: Progress) -> SASRec:
    """A model of one's own that was taught to answer as the victim did."""
    torch.set_num_threads(attack.threads)
    model = untaught(items, attack)
    taught = loot.lists[:, :, 0] != PAD_ROW  # (S, M)
    judged = taught.copy()
    judged[:, :-1] &= ~taught[:, 1:]  # the last prefix of each history
    taught = taught & ~judged
    whole = np.flatnonzero(taught.any(axis=1))
    if not len(whole):
        return model.eval()
    held_out = [History.of_rows(loot.rows[s, : m + 1]) for s, m in zip(*np.nonzero(judged), strict=True)]
    truth = loot.lists[judged][:, : max(JUDGED_AT)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    rng = np.random.default_rng(attack.seed)
    best, kept = -1.0, {name: value.clone() for name, value in model.state_dict().items()}
    for step in progress.bar(range(1, attack.steps + 1), f"learning {loot.questions:,} lists", unit="step"):
        model.train()
        chosen = rng.choice(whole, min(attack.batch, len(whole)), replace=False)
        # Left padding is what the encoder reads, so a history that was cut off is moved to the right.
        rows, lists, real = _aligned(loot.rows[chosen], loot.lists[chosen], taught[chosen])
        hidden = model.hidden(torch.from_numpy(rows))[torch.from_numpy(real)]  # (P, D)
        targets = torch.from_numpy(lists[real])
        outside = torch.from_numpy(rng.integers(1, items + 1, targets.shape))
        loss = ranking_loss(hidden @ model.item_vectors().T, targets, outside)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        if step % JUDGE_EVERY == 0 or step == attack.steps:
            agrees = agreement(truth, lists_of(model, held_out, k=truth.shape[1]), truth.shape[1])
            if agrees > best:
                best, kept = agrees, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval()


def untaught(items: int, attack: Attack) -> SASRec:
    """The copy before it has learnt anything."""
    torch.manual_seed(attack.seed)
    return SASRec(SASRecConfig(d=64, blocks=2, heads=2, window=attack.length), items)


def _aligned(
    rows: IntArray, lists: IntArray, real: npt.NDArray[np.bool_]
) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_]]:
    length = rows.shape[1]
    turned = (np.arange(length) - (length - real.sum(axis=1))[:, None]) % length  # (S, M)
    rows = np.where(real, rows, PAD_ROW)
    line = np.arange(len(rows))[:, None]
    return rows[line, turned], lists[line, turned], real[line, turned]


def lists_of(model: SASRec, histories: Sequence[History], *, k: int) -> IntArray:
    """int64, shape (C, k): what the copy would show, without what the history holds."""
    scorer = TorchScorer(model, name="copy")
    found = []
    for start in range(0, len(histories), BATCH):
        part = histories[start : start + BATCH]
        found.append(_unseen(scorer.scores(part, [0.0] * len(part)), part, k))
    return np.concatenate(found)


def _unseen(scores: FloatArray, histories: Sequence[History], k: int) -> IntArray:
    scores = scores.copy()
    scores[:, PAD_ROW] = -np.inf
    for line, history in enumerate(histories):
        scores[line, history.rows] = -np.inf
    return metrics.top(scores, k)


def agreement(ours: IntArray, theirs: IntArray, k: int) -> float:
    """The share of the first k items that two lists have in common, in any order, on average.

    Args:
        ours, theirs: int64, shape (C, at least k).
    """
    common = (ours[:, :k, None] == theirs[:, None, :k]) & (ours[:, :k, None] != PAD_ROW)
    return float(common.any(axis=2).sum(axis=1).mean() / k)


class Original:
    """The victim's own lists for real users, from its bundle: judging a copy must not cost the thief a question."""

    def __init__(self, bundle: Bundle, cases: Cases) -> None:
        self.cases = cases
        self.histories = cases.histories(0, len(cases))
        served = recommenders.load(bundle)
        eligible = served.filters.eligible(NO_FILTER)
        k = max(JUDGED_AT)
        self.lists = np.full((len(cases), k), PAD_ROW, dtype=np.int64)
        for start in range(0, len(cases), BATCH):
            asked = zip(self.histories[start : start + BATCH], cases.times[start : start + BATCH].tolist(), strict=True)
            queries = [Query(Request(history, time), k, eligible, history.rows) for history, time in asked]
            for at, answer in enumerate(served.recommender.recommend(queries), start=start):
                self.lists[at, : len(answer.rows)] = answer.rows
        popularity = np.asarray(served.catalog.popularity, dtype=np.float32)
        self.popular = _unseen(np.tile(popularity, (len(cases), 1)), self.histories, k)

    def line(self, name: str, lists: IntArray, *, questions: int = 0, cut_off: str | None = None) -> "Line":
        """How lists compare with the original's, and with what users did."""
        agrees = {f"agreement@{k}": agreement(self.lists, lists, k) for k in JUDGED_AT}
        hit = float((lists[:, : max(JUDGED_AT)] == self.cases.targets[:, None]).any(axis=1).mean())
        return Line(name, questions, cut_off, {**agrees, f"recall@{max(JUDGED_AT)}": hit})


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    name: str
    questions: int
    cut_off: str | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Extraction:
    """What was stolen.

    Attributes:
        words: what was asked of whom.
        lines: controls first.
    """

    words: str
    lines: Sequence[Line]

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)

    def __str__(self) -> str:
        names = list(self.lines[0].figures)
        width = max(len(line.name) for line in self.lines)
        rule = " | ".join(["-" * width, *("-" * 12 for _ in names), "-" * 9, "-" * 16])
        text = [self.words, "", f"| {'':<{width}} | " + " | ".join(f"{n:>12}" for n in names)]
        text[-1] += f" | {'questions':>9} | {'cut off by':<16} |"
        text.append(f"| {rule} |")
        for line in self.lines:
            figures = " | ".join(f"{line.figures[name]:>12.4f}" for name in names)
            cut_off = f"{line.cut_off or '':<16}"
            text.append(f"| {line.name:<{width}} | {figures} | {line.questions:>9,} | {cut_off} |")
        return "\n".join(text)


def extract(
    url: str,
    bundle: Bundle,
    cases: Cases,
    attack: Attack,
    *,
    arms: Sequence[str] = ARMS,
    ks: Sequence[int] = (100, 10),
    sizes: Sequence[int] = (),
    progress: Progress,
) -> Extraction:
    """Copies the model behind an address, by each arm and from lists of each length.

    Args:
        url: of a service on this machine that serves `bundle`.
        bundle: tells the ids, and what the original shows to the users of `cases`.
        attack: how; its arm, k and sequences are those of the other arguments.
        sizes: what so many histories bring; the largest are asked, smaller ones are the first of them.
    """
    sizes = sorted({*sizes, *(() if sizes else (attack.sequences,))})
    original, items = Original(bundle, cases), len(bundle.catalog)
    lines = [
        original.line("the original", original.lists),
        original.line("popular", original.popular),
        original.line("untaught", lists_of(untaught(items, attack).eval(), original.histories, k=max(JUDGED_AT))),
    ]
    with Victim(url) as victim:
        for arm, k in itertools.product(arms, ks):
            chosen = replace(attack, arm=arm, k=k, sequences=max(sizes))
            loot = rob(victim, bundle.catalog, chosen, progress)
            for size in sizes:
                part = loot.first(size)
                shown = lists_of(copy_of(part, items, chosen, progress), original.histories, k=max(JUDGED_AT))
                name = f"{arm}, {size:,} histories, lists of {k}"
                lines.append(original.line(name, shown, questions=part.questions, cut_off=loot.cut_off))
                progress.say(f"{name}: {lines[-1].figures}")
    words = (
        f"{bundle.name} over HTTP, {items:,} items; histories of {attack.length}, {attack.steps:,} steps of learning, "
        f"seed {attack.seed}; judged on {len(cases):,} cases ({cases.words})"
    )
    return Extraction(words, lines)


@dataclass(frozen=True)
class Honesty:
    """What a shop's back end asks in a day, all through one key, and what becomes of it.

    Attributes:
        days: that have events.
        median, most: distinct sequences of a day.
        asked: requests of the busiest day that were sent.
        refused: of them.
    """

    days: int
    median: float
    most: int
    asked: int
    refused: int

    def __str__(self) -> str:
        return (
            f"{self.days} days with a median of {self.median:g} distinct sequences and {self.most} at most; "
            f"of {self.asked} requests of the busiest day {self.refused} were refused"
        )


def replay(url: str, histories: Histories, catalog: Catalog, *, window: int, progress: Progress) -> Honesty:
    """Sends the busiest day of a log: after each event of a user, what would be shown to that user."""
    days = (histories.timestamps // DAY_S).astype(np.int64)
    starts = histories.offsets[:-1][histories.users()]
    read = [histories.rows[max(s, at + 1 - window) : at + 1] for at, s in enumerate(starts.tolist())]
    distinct: dict[int, set[bytes]] = {}
    for day, rows in zip(days.tolist(), read, strict=True):
        distinct.setdefault(day, set()).add(rows.tobytes())
    busiest = max(distinct, key=lambda day: len(distinct[day]))
    refused = 0
    events = np.flatnonzero(days == busiest).tolist()
    with Victim(url) as victim:
        for at in progress.bar(events, "the busiest day", unit="request"):
            try:
                victim.recommend([catalog.ids[row] for row in read[at].tolist()], 20)
            except CutOff:
                refused += 1
    counts = [len(found) for found in distinct.values()]
    return Honesty(len(counts), float(np.median(counts)), max(counts), len(events), refused)
