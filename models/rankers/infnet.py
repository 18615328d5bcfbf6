"""INFNet: fields, events and tasks as tokens; a few proxies of each type listen to the other types and gate their own.

Paper: Li, Mao, Tang et al. (2025), "INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation
Systems", arXiv 2508.11565, in its first version. With C (M, d), S (L, d), T (N_t, d) the tokens of fields, of events
and of tasks, and Ct (m, d), St (F, d), Tt (N_s, d) their proxies, a block is

    Ct' = CA(Ct, S, S) + CA(Ct, T, T)      C' = C * (1 + g(Ct'))
    St' = CA(St, C, C) + CA(St, T, T)      S' = S * (1 + g(St'))
    Tt' = CA(Tt, C, C) + CA(Tt, S, S)      T' = That * (1 + g(Tt'))
    That = CA(T, C, C) + CA(T, S, S)
    CA(Q, K, V) = softmax(Q W_Q (K W_K)^T / sqrt(d)) V W_V      g(X) = sigmoid(MLP(flatten(X)))

and a tower per task reads the last T.

Folded: a gate is one vector per candidate and type, so after l blocks S is S0 * G, with G (d,) a product of factors:

    logits = (q W_Q) W_K^T diag(G) S0^T / sqrt(d)      output = softmax(logits) S0 diag(G) W_V

Neither keys nor values are ever projected, and nothing of width L * d exists once per candidate. C is treated likewise:
its M keys would cost more than the few that ask. What does not depend on the candidate (proxies of sequences, learnt
tokens, request fields) is computed once per request. `forward_plain` computes the block as it is written above.

Left open by the paper, and chosen:
- The gate reads the proxies after the attention of its block (text and index disagree) and stands beside a residual,
  1 + g; `paper_gate` takes the residual away. Proxies are updated as LayerNorm(proxy + attention); tokens are not
  normalised, which would end the folding. One head of width d, no biases in attentions, every arrow its own weights.
- In the last block only T is of use: its other proxies could only gate what nobody reads, so they have no weights.

Deviations:
- Proxies of sequences are masked means, not sums, which would grow with the history.
- Events read the tables of the candidate's fields, and a learnt vector says of which behaviour they are. An event is
  the mean of its fields.
- A behaviour without events is one learnt token; without it the softmax over nothing would be NaN.
- Numbers are bucketised as in the paper and have a straight line added, see `models.fields`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InvalidOption
from models.fields import Fields
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import Fitted, RankerTraining, descend, log_odds, network_probabilities, write_network
from models.registry import register
from retrieval.features import ARRAYS, FeatureSet
from retrieval.sequences import FloatArray

# Added to the logit of what is not there, whose token is zero, so that its share is at most e**-64 of any other's that
# is not itself far below zero. Not -1e9: onnxruntime's softmax takes four times as long where results underflow.
MASKED = -64.0


@dataclass(frozen=True)
class InfNetConfig:
    """Hyper-parameters.

    Attributes:
        d: width of tokens.
        blocks: N.
        field_proxies: m.
        shared_tokens: N_s, learnt tokens that all tasks share.
        proxy_hidden: hidden width of the network that makes the proxies of fields.
        gate_hidden: hidden width of a gate.
        towers: hidden widths of a task's tower, separated by commas.
        dropout: on tokens and in towers.
        numbers: `buckets`, `linear` or `both`, see `models.fields`.
        buckets: per number.
        paper_gate: X * g in place of X * (1 + g).
        task_tokens: false leaves T and Tt out; towers read the last proxies of fields and sequences.
        heterogeneous: false leaves all attentions out: proxies stay as they began, and towers read the means of the
            gated tokens of fields and of events beside T.
        homogeneous: false leaves all gates out, and with them the proxies, which have nothing else to act upon.
        proxies: false lets the mean of a type's tokens speak for it, in place of proxies that are learnt.
    """

    d: int = 16
    blocks: int = 2
    field_proxies: int = 4
    shared_tokens: int = 2
    proxy_hidden: int = 64
    gate_hidden: int = 32
    towers: str = "32"
    dropout: float = 0.1
    numbers: str = "both"
    buckets: int = 8
    paper_gate: bool = False
    task_tokens: bool = True
    heterogeneous: bool = True
    homogeneous: bool = True
    proxies: bool = True

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "blocks", "field_proxies", "shared_tokens", "proxy_hidden", "gate_hidden"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout {self.dropout} must be at least 0 and below 1")
        if not all(part.strip().isdigit() and int(part) for part in self.towers.split(",")):
            raise InvalidOption(f"towers {self.towers!r}: whole numbers above zero, separated by commas")

    @property
    def tower_widths(self) -> tuple[int, ...]:
        """The hidden widths of a tower."""
        return tuple(int(part) for part in self.towers.split(","))


class Attention(nn.Module):
    """The weights of one arrow: who asks (Q), and of what (K, V)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.empty(d, d)) for _ in range(3))
        for weight in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(weight)
        self.scale = 1 / math.sqrt(d)

    def asked(self, q: Tensor) -> Tensor:
        """q W_Q W_K^T / sqrt(d): to be held against keys that were never projected."""
        return q @ (self.query @ self.key.T * self.scale)


@dataclass(frozen=True, eq=False)
class Folded:
    """Tokens of a type that are asked without being gated or projected themselves.

    Attributes:
        tokens: S0 of each request (B, n, d), C0 of each candidate (B, C, n, d), or the learnt T (n, d).
        bias: `MASKED` where there is no token, (B, 1, n).
        gate: G (B, C, d); None before the first.
    """

    tokens: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None

    def gated(self, factor: Tensor) -> "Folded":
        """The same tokens times a factor (B, C, d)."""
        return Folded(self.tokens, self.bias, factor if self.gate is None else self.gate * factor)

    def heard(self, arrows: Sequence[tuple[Attention, Tensor]]) -> list[Tensor]:
        """What each arrow brings its queries: the shapes of the queries (B, C or 1, n, d), or of all candidates."""
        out = [q for _, q in arrows]
        # Queries that are the same for all candidates ask in one product, the others in another.
        alike = [bool(q.shape[1] == 1) for _, q in arrows]
        for kind in sorted({*alike}):
            own = [at for at, one in enumerate(alike) if one == kind]
            asked = [arrows[at][0].asked(arrows[at][1]) for at in own]
            answer = self._answer(torch.cat(asked, dim=2) if len(asked) > 1 else asked[0])
            for at, piece in zip(own, answer.split([q.shape[2] for q in asked], dim=2), strict=True):
                out[at] = piece @ arrows[at][0].value
        return out

    def mean(self) -> Tensor:
        """(B, C or 1, d): the mean of the tokens that are there."""
        if self.bias is None:
            mean = self.tokens.mean(dim=-2)
        else:
            there = (self.bias == 0).float()
            mean = (there / there.sum(dim=-1, keepdim=True)) @ self.tokens  # (B, 1, d)
        return mean if self.gate is None else mean * self.gate

    def _answer(self, asked: Tensor) -> Tensor:
        if self.gate is not None:
            asked = asked * self.gate[:, :, None]
        if self.tokens.ndim == 3:
            # One product per request, not one per candidate; the bias is one more coordinate, which all ask for.
            flat, keys = asked.flatten(1, 2), self.tokens
            if self.bias is not None:
                flat, keys = F.pad(flat, (0, 1), value=1.0), torch.cat([keys, self.bias.mT], dim=2)
            answer = ((flat @ keys.mT).softmax(dim=-1) @ self.tokens).unflatten(1, (-1, asked.shape[2]))
        else:
            answer = (asked @ self.tokens.mT).softmax(dim=-1) @ self.tokens
        return answer if self.gate is None else answer * self.gate[:, :, None]


@dataclass(frozen=True, eq=False)
class Plain:
    """Tokens of a type, gated and projected for each candidate, as the equations have it.

    Attributes:
        tokens: (B, C, n, d).
        bias: `MASKED` where there is no token, (B, 1, n).
    """

    tokens: Tensor
    bias: Tensor | None = None

    def gated(self, factor: Tensor) -> "Plain":
        """See `Folded`."""
        return Plain(self.tokens * factor[:, :, None], self.bias)

    def heard(self, arrows: Sequence[tuple[Attention, Tensor]]) -> list[Tensor]:
        """See `Folded`."""
        bias = 0.0 if self.bias is None else self.bias[:, :, None]
        out = []
        for arrow, q in arrows:
            logits = (q @ arrow.query) @ (self.tokens @ arrow.key).mT * arrow.scale + bias
            out.append(logits.softmax(dim=-1) @ (self.tokens @ arrow.value))
        return out

    def mean(self) -> Tensor:
        """See `Folded`."""
        if self.bias is None:
            return self.tokens.mean(dim=2)
        there = (self.bias == 0).float()[..., None]
        return (self.tokens * there).sum(dim=2) / there.sum(dim=2)


Source = Folded | Plain

# Who listens to whom: proxies by the type that they speak for, and the tasks' own tokens, which are what towers read.
FIELDS, EVENTS, TASKS, OWN = "fields", "events", "tasks", "own"
LISTEN = {FIELDS: (EVENTS, TASKS), EVENTS: (FIELDS, TASKS), TASKS: (FIELDS, EVENTS), OWN: (FIELDS, EVENTS)}


class Block(nn.Module):
    """Heterogeneous flow into the proxies, then homogeneous flow from the proxies into their tokens.

    Args:
        config: hyper-parameters.
        sizes: how many proxies speak for each type; those types alone have any.
        gated: types whose tokens are gated.
    """

    def __init__(self, config: InfNetConfig, sizes: Mapping[str, int], gated: Sequence[str]) -> None:
        super().__init__()
        d, kept = config.d, 0.0 if config.paper_gate else 1.0
        self.kept = kept
        asking = [*sizes, OWN] if config.task_tokens else [*sizes]
        present = (FIELDS, EVENTS, TASKS) if config.task_tokens else (FIELDS, EVENTS)
        self.arrows = nn.ModuleDict(
            {
                f"{name} of {source}": Attention(d)
                for name in asking
                for source in LISTEN[name]
                if config.heterogeneous and source in present
            }
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(d) for name in sizes if config.heterogeneous})
        hidden = config.gate_hidden
        self.gates = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(sizes[name] * d, hidden), nn.ReLU(), nn.Linear(hidden, d)) for name in gated}
        )

    def forward(
        self, sources: Mapping[str, Source], proxies: Mapping[str, Tensor], own: Tensor | None
    ) -> tuple[dict[str, Source], dict[str, Tensor], Tensor | None]:
        """The sources gated, the proxies (B, C, n, d) and the tasks' tokens T (B, C, N_t, d) after this block."""
        asking = dict(proxies) if own is None else {**proxies, OWN: own}
        heard: dict[str, Tensor] = {}
        for source, tokens in sources.items():
            names = [name for name in asking if f"{name} of {source}" in self.arrows]
            arrows: list[tuple[Any, Tensor]] = [(self.arrows[f"{name} of {source}"], asking[name]) for name in names]
            for name, brought in zip(names, tokens.heard(arrows), strict=True):
                heard[name] = heard[name] + brought if name in heard else brought
        updated = {
            name: self.norms[name](proxy + heard[name]) if name in self.norms else proxy
            for name, proxy in proxies.items()
        }
        own, after = heard.get(OWN, own), dict(sources)
        for name, gate in self.gates.items():
            factor = self.kept + gate(updated[name].flatten(2)).sigmoid()
            if name == TASKS and own is not None:
                own = own * factor[:, :, None]
            else:
                after[name] = sources[name].gated(factor)
        if own is not None:
            after[TASKS] = type(after[FIELDS])(own)
        return after, updated, own


@register("infnet")
class InfNet(nn.Module):
    """The ranker.

    Args:
        config: hyper-parameters.
        features: what it reads; each of its arrays may be without columns, except that there must be a field.
    """

    paper: ClassVar[str] = "Li et al., INFNet: A Task-aware Information Flow Network, arXiv 2508.11565, 2025"
    stage: ClassVar[str] = "ranker"
    status: ClassVar[str] = "the first version of the paper; held against its equations, not against its figures"
    Config: ClassVar[type] = InfNetConfig
    recipe: ClassVar[Mapping[str, Any]] = {}
    inputs: ClassVar[tuple[str, ...]] = ARRAYS

    def __init__(self, config: InfNetConfig, features: FeatureSet) -> None:
        super().__init__()
        self.config = config
        d, self.behaviours, self.tasks = config.d, len(features.behaviours), len(features.tasks)
        self.fields = Fields(features, d, numbers=config.numbers, buckets=config.buckets)
        fields = self.fields.of_candidate + self.fields.of_request
        if not fields:
            raise InvalidOption("INFNet reads fields of candidates or of requests, and these features have none")
        self.kinds = nn.Parameter(torch.randn(self.behaviours, d) * d**-0.5)
        self.empty = nn.Parameter(torch.randn(self.behaviours, d) * d**-0.5)
        self.own = nn.Parameter(torch.randn(self.tasks, d)) if config.task_tokens else None
        self.dropout = nn.Dropout(config.dropout)

        # What nothing listens to has no weights: gates act on tokens that a later block or a tower reads.
        means = not config.heterogeneous
        self.blocks = nn.ModuleList()
        all_sizes = {FIELDS: config.field_proxies, EVENTS: self.behaviours, TASKS: config.shared_tokens}
        if not config.proxies:
            all_sizes = dict.fromkeys(all_sizes, 1)
        spoken_for: set[str] = set()
        for at in range(config.blocks):
            gated = [FIELDS, EVENTS] if config.homogeneous and (at < config.blocks - 1 or means) else []
            gated += [TASKS] if config.homogeneous and config.task_tokens else []
            used = {*gated} | ({FIELDS, EVENTS} if self._reads_proxies else set())
            self.blocks.append(Block(config, {name: n for name, n in all_sizes.items() if name in used}, gated))
            spoken_for |= used
        self.sizes = {name: n for name, n in all_sizes.items() if name in spoken_for}

        self.field_proxies = self.event_projection = self.shared = None
        if config.proxies:
            if FIELDS in self.sizes:
                self.field_proxies = nn.Sequential(
                    nn.Linear(fields * d, config.proxy_hidden),
                    nn.ReLU(),
                    nn.Linear(config.proxy_hidden, config.field_proxies * d),
                )
            if EVENTS in self.sizes:
                self.event_projection = nn.Linear(d, d)
            if TASKS in self.sizes:
                self.shared = nn.Parameter(torch.randn(config.shared_tokens, d))
        read = d if config.task_tokens else 0
        read += 2 * d if means else (self.sizes[FIELDS] + self.sizes[EVENTS]) * d if self._reads_proxies else 0
        self.towers = nn.ModuleList(_tower(read, config) for _ in features.tasks)

    @property
    def _reads_proxies(self) -> bool:
        return self.config.heterogeneous and not self.config.task_tokens

    def forward(self, *feeds: Tensor) -> Tensor:
        """float32 (B, C, T): logits, by the folded form."""
        fields, events, kinds = self._tokens(*feeds)
        bias = torch.where(kinds > 0, 0.0, MASKED)[:, None]
        sources: dict[str, Source] = {FIELDS: Folded(fields), EVENTS: Folded(events, bias)}
        own = None
        if self.own is not None:
            sources[TASKS] = Folded(self.own)
            own = self.own.expand(fields.shape[0], 1, -1, -1)
        return self._through(sources, self._first_proxies(fields, events, kinds), own)

    def forward_plain(self, *feeds: Tensor) -> Tensor:
        """float32 (B, C, T): logits as the equations have them, every sequence copied for every candidate; slow."""
        fields, events, kinds = self._tokens(*feeds)
        candidates = fields.shape[:2]
        bias = torch.where(kinds > 0, 0.0, MASKED)[:, None]
        sources: dict[str, Source] = {
            FIELDS: Plain(fields),
            EVENTS: Plain(events[:, None].expand(*candidates, -1, -1), bias),
        }
        own = None
        if self.own is not None:
            own = self.own.expand(*candidates, -1, -1)
            sources[TASKS] = Plain(own)
        proxies = self._first_proxies(fields, events, kinds)
        everywhere = {name: proxy.expand(*candidates, -1, -1) for name, proxy in proxies.items()}
        return self._through(sources, everywhere, own)

    def fit(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
        """Learns; see `models.registry.Ranker`."""
        self.fields.learn(train.feeds)
        with torch.no_grad():
            for tower, odds in zip(self.towers.children(), log_odds(train.labels).tolist(), strict=True):
                list(tower.parameters())[-1].fill_(odds)
        return descend(self, train, validation, how, progress)

    def probabilities(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> FloatArray:
        """float32, shape (B, C, T)."""
        return network_probabilities(self, feeds)

    def write(self, path: Path, feeds: Mapping[str, npt.NDArray[Any]], /) -> None:
        """The ONNX graph of the folded form."""
        write_network(self, path, feeds)

    def _tokens(
        self,
        candidate_codes: Tensor,
        candidate_numbers: Tensor,
        request_codes: Tensor,
        request_numbers: Tensor,
        event_codes: Tensor,
        event_behaviours: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """C0 (B, C, M, d); S0 (B, L + F, d), and of which behaviour each of its tokens is, 0 for none (B, L + F)."""
        batch, candidates = candidate_codes.shape[:2]
        pieces = self.fields.candidate(candidate_codes, candidate_numbers)
        for piece in self.fields.request(request_codes, request_numbers):
            pieces.append(piece[:, None].expand(-1, candidates, -1, -1))
        fields = torch.cat(pieces, dim=2)
        events = F.embedding((event_behaviours - 1).clamp(min=0), self.kinds)
        carried = self.fields.events(event_codes)
        if carried:
            events = events + torch.cat(carried, dim=2).mean(dim=2)
        # A behaviour without events says so by a token of its own.
        every = torch.arange(1, self.behaviours + 1, device=event_behaviours.device)
        missing = (event_behaviours[:, None] != every[:, None]).all(dim=2) * every  # (B, F)
        kinds = torch.cat([event_behaviours, missing], dim=1)
        events = torch.cat([events, self.empty.expand(batch, -1, -1)], dim=1) * (kinds > 0).float()[..., None]
        return self.dropout(fields), self.dropout(events), kinds

    def _first_proxies(self, fields: Tensor, events: Tensor, kinds: Tensor) -> dict[str, Tensor]:
        """Ct (B, C, m, d), St (B, 1, F, d) and Tt (B, 1, N_s, d), those of them that speak."""
        made: dict[str, Tensor] = {}
        if FIELDS in self.sizes:
            made[FIELDS] = (
                fields.mean(dim=2, keepdim=True)
                if self.field_proxies is None
                else self.field_proxies(fields.flatten(2)).unflatten(2, (-1, self.config.d))
            )
        if EVENTS in self.sizes:
            every = torch.arange(1, self.behaviours + 1, device=kinds.device)
            belongs = (kinds[:, None] == every[:, None]) if self.config.proxies else (kinds > 0)[:, None]
            shares = belongs.float() / belongs.sum(dim=2, keepdim=True)
            means = (shares @ events)[:, None]
            made[EVENTS] = means if self.event_projection is None else self.event_projection(means)
        if TASKS in self.sizes and self.own is not None:
            shared = self.own.mean(dim=0, keepdim=True) if self.shared is None else self.shared
            made[TASKS] = shared.expand(fields.shape[0], 1, -1, -1)
        return made

    def _through(self, sources: Mapping[str, Source], proxies: Mapping[str, Tensor], own: Tensor | None) -> Tensor:
        """The logits, from what the first block reads."""
        candidates = sources[FIELDS].tokens.shape[:2]
        for block in self.blocks:
            sources, proxies, own = block(sources, proxies, own)
        read: list[Tensor] = []
        if not self.config.heterogeneous:
            read = [sources[FIELDS].mean(), sources[EVENTS].mean()]
        elif self._reads_proxies:
            read = [proxies[FIELDS].flatten(2), proxies[EVENTS].flatten(2)]
        logits = []
        for task, tower in enumerate(self.towers):
            parts = [*read] if own is None else [own[:, :, task], *read]
            whole = parts[0] if len(parts) == 1 else torch.cat([p.expand(*candidates, -1) for p in parts], dim=2)
            logits.append(tower(whole))
        return torch.cat(logits, dim=2)


def _tower(read: int, config: InfNetConfig) -> nn.Sequential:
    """One task's head: (B, C, read) -> (B, C, 1)."""
    layers: list[nn.Module] = []
    for width in config.tower_widths:
        layers += [nn.Linear(read, width), nn.ReLU(), nn.Dropout(config.dropout)]
        read = width
    return nn.Sequential(*layers, nn.Linear(read, 1))
