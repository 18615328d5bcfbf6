"""RecGPT: items known by their text alone, four codes each, and all four codes of the next item predicted at once.

Paper: "RecGPT: A Foundation Model for Sequential Recommendation", 2025, arXiv 2506.06270. Nothing in the weights
belongs to an item: codes and text vectors come from tables beside the model, so the same weights read another catalog
(`over`), which is what `models.transfer` measures.

A token is one code of one item. It enters as LN(code) + LN(chunk of the item's text vector) + position; attention sees
the whole block of its own item and everything before it; the state at token t of an item predicts token t of the next.
The four distributions of the next item are independent given the history, so the score of an item is a sum of four
gathers, exact without any search (`retrieval.beam.score_all`).

Deviations:
- Size: 256 wide here and 768 in the paper, which learnt from 132 million events.
- Where codes are points of a grid (FSQ), codes with a coordinate in common share a part of their input and output
  vectors (`vectors`). The paper's hundred times larger data shows every code often. Here, vectors of their own learn
  the training catalogs by heart and say nothing of another; sums over coordinates alone carry over, and the softmax
  over all codes is then exactly one small softmax per coordinate.
- The head is not tied to the input vectors, but begins as a copy of them: an untrained model then ranks by closeness
  to the newest item, which random heads had not learnt from 0.7 million targets. By the paper's objective that is
  unlearnt: most of a code's probability is won by knowing which catalog one is in. `objective=items` asks for the
  target among others of its own catalog, where this wins nothing; the score is the same sum of log-probabilities. At a
  small learning rate it keeps what the model began with. That it adds to it on a catalog never met was not seen here.
- Positions count the real items of the window, the oldest being 0, as right padding counts them; so neither the padding
  nor an item without a code moves anything. The public predictor pads on the left and its positions shift.
- No dropout on attention weights, where it would turn the fused kernel off.
- With vectors of their own the softmax of training is over the codes that some item of the catalog has, full otherwise
  and without sampling; what serves is normalised over all codes again, which moves no ranking.
- That softmax is computed slice by slice, its gradient with it, in bfloat16 unless `precision` says otherwise: the
  same function, without ever holding the logits of thousands of codes for every token of a batch.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.sasrec import Block, SASRecConfig
from models.errors import InvalidOption
from models.registry import register
from models.semantic_ids import SemanticIds
from retrieval.inputs import Tables
from retrieval.quantisers import FiniteScalar

TEXT = "text"  # the name of the text vectors among the tables
EPSILON = 1e-5
SLICE = 1024  # tokens whose logits over all codes are held at once


@dataclass(frozen=True)
class RecGPTConfig:
    """Hyper-parameters.

    Attributes:
        d: width D.
        blocks: attention blocks.
        heads: attention heads.
        window: longest history that is read, in items.
        dropout: on embeddings, attention output and feed-forward.
        expansion: feed-forward width in units of d.
        reads_text: whether tokens also carry the text vector itself.
        vectors: of codes: `free` gives each its own, `grid` one to each value of a grid coordinate, and a code has the
            sum of its coordinates' vectors; `both` adds the two. Codes that are no grid are free whatever this says.
        objective: `codes`, the cross-entropy of the target's codes, as in the paper; or `items`, that of the target
            among the other targets of the batch and of its catalog.
        precision: `bfloat16` or `float32`, of matrix products in training. What is stored and served is float32.
    """

    d: int = 256
    blocks: int = 3
    heads: int = 4
    window: int = 50
    dropout: float = 0.1
    expansion: int = 4
    reads_text: bool = True
    vectors: str = "both"
    objective: str = "codes"
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "blocks", "heads", "window", "expansion"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout {self.dropout} must be at least 0 and below 1")
        if self.d % self.heads:
            raise InvalidOption(f"d {self.d} is not divisible by heads {self.heads}")
        choices = {
            "vectors": ("free", "grid", "both"),
            "objective": ("codes", "items"),
            "precision": ("bfloat16", "float32"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidOption(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")


class CodeVectors(nn.Module):
    """One vector per code: its own, or the sum of one per grid coordinate, or both.

    Args:
        codes: V.
        d: width D.
        steps: values of each grid dimension, V their product; empty where no vectors are shared.
        free: whether every code also has a vector of its own.
    """

    def __init__(self, codes: int, d: int, steps: tuple[int, ...], *, free: bool) -> None:
        super().__init__()
        self.steps = steps
        self.free = nn.Parameter(torch.empty(codes if free else 0, d).normal_(std=0.02))
        # Neighbouring values of a coordinate begin alike, so that what is near on the grid is near here.
        begun = [0.02 * _smooth(step) @ torch.randn(step, d) for step in steps]
        self.shared = nn.Parameter(torch.cat(begun) if begun else torch.zeros(0, d))
        numbers, digits = torch.arange(codes), []
        for step in steps:
            digits.append(numbers % step)
            numbers = numbers // step
        self.digits: Tensor
        self.coordinates: Tensor
        ones = [F.one_hot(digit, step) for digit, step in zip(digits, steps, strict=True)]
        self.register_buffer("digits", torch.stack(digits, 1) if digits else torch.zeros(codes, 0), persistent=False)
        self.register_buffer(
            "coordinates", torch.cat(ones, 1).float() if ones else torch.zeros(codes, 0), persistent=False
        )

    def forward(self) -> Tensor:
        """float32 (V, D)."""
        if not self.steps:
            return self.free
        shared = self.coordinates @ self.shared
        return self.free + shared if len(self.free) else shared


def _smooth(values: int) -> Tensor:
    """float32 (n, n): turns n independent vectors into ones whose likeness falls with distance, exp(-(i - j)^2 / 2)."""
    places = torch.arange(values, dtype=torch.float32)
    likeness = torch.exp(-((places[:, None] - places) ** 2) / 2)
    return torch.linalg.cholesky(likeness + 1e-4 * torch.eye(values))


@register("recgpt")
class RecGPT(nn.Module):
    """The generator.

    Where several catalogs were joined to one, `groups` says which row is of which, float32 (N + 1,); all are of one
    until somebody says otherwise.

    Args:
        config: hyper-parameters.
        ids: the semantic ids of the catalog; all levels have one vocabulary.

    Raises:
        InvalidOption: levels of different sizes.
    """

    paper: ClassVar[str] = "RecGPT: A Foundation Model for Sequential Recommendation, 2025, arXiv 2506.06270"
    stage: ClassVar[str] = "generator"
    status: ClassVar[str] = "transfers by how it begins, not yet by what it learns: see models/RESULTS.md"
    Config: ClassVar[type] = RecGPTConfig
    recipe: ClassVar[Mapping[str, Any]] = {"epochs": 20, "patience": 4, "warmup": 200}
    semantic: ClassVar[Mapping[str, Any]] = {"quantiser": "fsq", "dedup": False}
    inputs: ClassVar[tuple[str, ...]] = ("item_codes", f"item_vectors:{TEXT}")
    memory_names: ClassVar[tuple[str, ...]] = ()
    exclude_seen: ClassVar[bool] = True

    def __init__(self, config: RecGPTConfig, ids: SemanticIds) -> None:
        super().__init__()
        vocabulary = ids.table.vocabulary
        if len(set(vocabulary)) > 1:
            raise InvalidOption(
                f"recgpt shares one vocabulary between all levels, and these have {list(vocabulary)}; use --set "
                "quantiser=fsq dedup=false, or codebooks of one size"
            )
        self.config = config
        self.tables = Tables(vectors={TEXT: ids.vectors}, codes=ids.table)
        self.levels, width = len(vocabulary), ids.vectors.shape[1]
        quantiser = ids.describer.quantiser
        steps: tuple[int, ...] = ()
        free = True
        if isinstance(quantiser, FiniteScalar) and config.vectors != "free":
            steps, free = quantiser.steps, config.vectors == "both"
        self.codes: Tensor
        self.live: Tensor
        self.places: Tensor
        self.groups: Tensor
        codes = torch.from_numpy(ids.table.codes.astype("int64"))
        live = codes[codes[:, 0] >= 0].unique()  # the codes that some item has, at any level
        places = torch.full(vocabulary[:1], -1).scatter(0, live, torch.arange(len(live)))
        for name, table in (("codes", codes), ("live", live), ("places", places), ("groups", torch.zeros(len(codes)))):
            self.register_buffer(name, table, persistent=False)
        self.read = CodeVectors(vocabulary[0], config.d, steps, free=free)
        self.head = CodeVectors(vocabulary[0], config.d, steps, free=free)
        # Untrained, the model then says that what is near the newest item comes next; the two part as they learn.
        self.head.load_state_dict(self.read.state_dict())
        self.chunk = -(-width // self.levels)  # coordinates of the text vector that each token carries
        self.describe = nn.Linear(self.chunk, config.d, bias=False)
        self.norm_code, self.norm_text = nn.LayerNorm(config.d), nn.LayerNorm(config.d)
        self.positions = nn.Parameter(torch.empty(config.window, self.levels, config.d).normal_(std=0.02))
        block = SASRecConfig(
            d=config.d,
            heads=config.heads,
            window=config.window * self.levels,
            dropout=config.dropout,
            norm="pre",
            expansion=config.expansion,
            epsilon=EPSILON,
        )
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(config.d)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def over(self, ids: SemanticIds) -> Self:
        """The same weights over another catalog, whose codes and text vectors were made by the same describer."""
        moved = type(self)(self.config, ids)
        moved.load_state_dict(self.state_dict())
        return moved.train(self.training)

    def loss(self, feeds: tuple[Tensor, ...], targets: Tensor, real: Tensor) -> tuple[Tensor, int]:
        """The mean cross-entropy of the codes of every target.

        Args:
            feeds: int64 (B, n, L) and float32 (B, n, Dt): codes and text vectors of the history.
            targets: int64 (B, n): catalog row that follows each slot.
            real: bool (B, n): slots that are no padding.

        Returns:
            The loss, and how many targets it is the mean of.
        """
        wanted = self.codes[targets]  # (B, n, L)
        asked = real & (wanted[..., 0] >= 0) & (feeds[0][..., 0] >= 0)
        with self._precision():
            states = self.states(*feeds)[asked].flatten(0, 1)  # (P L, D)
        positions = int(asked.sum())
        if self.config.objective == "items":
            return self._among_targets(states, targets[asked]) / max(1, positions), positions
        return self._cross_entropy(states, wanted[asked].flatten()) / max(1, positions * self.levels), positions

    def _among_targets(self, states: Tensor, targets: Tensor) -> Tensor:
        """The sum of -log p(target | the targets of this batch in its group), states (P L, D) and rows int64 (P,).

        An item's score is the one that serves, sum_k log p_k(c_k), whose normalisers are the same for all and cancel.
        """
        with self._precision():
            items = self.head()[self.codes[targets]].flatten(1)  # (P, L D)
            scores = (states.view(-1, items.shape[1]) @ items.T).float()  # (P, P)
        twin = (targets[:, None] == targets) & ~torch.eye(len(targets), dtype=torch.bool)
        foreign = self.groups[targets][:, None] != self.groups[targets]
        scores = scores.masked_fill(twin | foreign, -torch.inf)
        return F.cross_entropy(scores, torch.arange(len(targets)), reduction="sum")

    def _cross_entropy(self, states: Tensor, wanted: Tensor) -> Tensor:
        """The sum of -log p over states float32 (T, D) and codes int64 (T,)."""
        head = self.head
        if not len(head.free):
            # exp(s . sum_j u_j) over all points of a grid is a product over its dimensions, and so is its sum: the
            # softmax over all codes is one small softmax per coordinate, to the last digit.
            logits, digits = (states.float() @ head.shared.T).split(head.steps, dim=1), head.digits[wanted].unbind(1)
            each = [F.cross_entropy(of, digit, reduction="sum") for of, digit in zip(logits, digits, strict=True)]
            return torch.stack(each).sum()
        half = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        total: Tensor = SlicedCrossEntropy.apply(states.to(half), head()[self.live].to(half), self.places[wanted])
        return total

    def distributions(self, item_codes: Tensor, item_vectors: Tensor) -> Tensor:
        """float32 (B, L, V): log-probabilities of every code of the next item.

        Args:
            item_codes: int64 (B, n, L); -1 where there is no item.
            item_vectors: float32 (B, n, Dt).
        """
        states = self.states(item_codes, item_vectors)
        real = item_codes[..., 0] >= 0
        newest = real & (real.long().cumsum(1) == real.long().sum(1, keepdim=True))  # (B, n): one of each line
        state = (states * newest[..., None, None]).sum(1)  # (B, L, D)
        return torch.log_softmax(state @ self.head().T, dim=-1)

    def states(self, item_codes: Tensor, item_vectors: Tensor) -> Tensor:
        """float32 (B, n, L, D): at token t of each item, the query for token t of the next."""
        real = item_codes[..., 0] >= 0  # (B, n)
        x = self.norm_code(F.embedding(item_codes.clamp(min=0), self.read()))  # (B, n, L, D)
        if self.config.reads_text:
            short = self.chunk * self.levels - item_vectors.shape[-1]
            chunks = F.pad(item_vectors, (0, short)).unflatten(-1, (self.levels, self.chunk))
            x = x + self.norm_text(self.describe(chunks))
        place = (real.long().cumsum(1) - 1).clamp(min=0)  # how many real items stand before
        x = self.dropout(x + self.positions[place]) * real[..., None, None]
        x = x.flatten(1, 2)  # (B, n L, D)
        allowed = self._allowed(real)
        for block in self.blocks:
            x = block(x, allowed)
        out: Tensor = self.norm_out(x).unflatten(1, (-1, self.levels))
        return out

    def _allowed(self, real: Tensor) -> Tensor:
        """bool (B, 1, n L, n L): every token sees its own item whole and all real items before it, of bool (B, n)."""
        n = real.shape[1]
        slots = torch.arange(n, device=real.device)
        seen = (slots[:, None] >= slots) & real[:, None, :]
        seen = seen | (slots[:, None] == slots)  # padding sees itself: a line without any key would be NaN
        return seen[:, None, :, None, :, None].expand(-1, 1, n, self.levels, n, self.levels).flatten(4, 5).flatten(2, 3)

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16")


class SlicedCrossEntropy(torch.autograd.Function):
    """The summed cross-entropy of states (P, D) against all codes (V, D), logits never held for more than a slice.

    sum_p [log sum_v exp(s_p . h_v) - s_p . h_t(p)]; its gradients are formed on the way, while the logits are there:
    ds = softmax H - h_t and dH = softmax^T S - (sum of the states whose target it is).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """float32 scalar; see the class."""
        total = torch.zeros((), dtype=torch.float32)
        of_states, of_head = torch.empty_like(states), torch.zeros(head.shape, dtype=torch.float32)
        for start in range(0, len(states), SLICE):
            part, wanted = states[start : start + SLICE], targets[start : start + SLICE]
            logits = part @ head.T  # (p, V)
            own = logits.gather(1, wanted[:, None]).float()
            # No peak is taken off first: two passes less, and float32 and bfloat16 both reach to e^88.
            weights = logits.exp_()
            sums = weights.sum(1, keepdim=True, dtype=torch.float32)
            total += (sums.log() - own).sum()
            of_states[start : start + SLICE] = (weights @ head) / sums - head[wanted]
            of_head += weights.T @ (part / sums).to(part.dtype)
        of_head.index_add_(0, targets, states.float(), alpha=-1.0)
        ctx.save_for_backward(of_states, of_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """See the class."""
        of_states, of_head = ctx.saved_tensors
        return of_states * grad, of_head * grad, None
