"""TIGER: the history as one run of codes through an encoder, the next item written code by code by a decoder.

Paper: Rajput et al. (2023), "Recommender Systems with Generative Retrieval", NeurIPS (TIGER). Both halves are T5's:
Raffel et al. (2020), "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21,
section 2.1: normalisation by the root mean square before every part, no biases, products that are not scaled, positions
as a learnt bias per head for each bucket of distances, one bias for all layers.

Every target of a user is a sample of its own: the items before it, at most `window`, through the whole model. Samples
of like length go through together, so little of what is computed is padding.

Deviations:
- No user token: user ids reach no input, so that a bundle holds nothing of anybody (the paper's own ablation without
  it: recall@10 on Beauty the same, 0.0648).
- One softmax over its own V codewords per level. The paper has one vocabulary for all levels and does not say whether
  it masks; the level is known at each step, so what another level would get is probability lost. Its vectors are those
  that read and write codes, scaled by D^-1/2, as T5's first version shares them: a code that was read in histories but
  never was a target can still be written.
- No end token: all tuples have the same length.
- A user of more than `window` + 1 events is cut in stretches, at another place each epoch, and a sample reads its own
  stretch: fewer than `window` items near its beginning.
- The paper's rate (0.01, then falling) is unstable in public reproductions; the recipe is theirs, 3e-4 throughout.
- Matrix products of training are in bfloat16 unless `precision` says otherwise.

`models.generators.tiger_decoder` is the same idea at a twentieth of the training.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InvalidOption
from models.registry import register
from models.semantic_ids import SemanticIds
from retrieval.inputs import Tables

BUCKETS, FARTHEST = 32, 128  # of distances between tokens; from the second on they are all the same
EPSILON = 1e-6
Group = tuple[Tensor, Tensor]  # histories and what followed
Pairs = list[tuple[Tensor, Tensor]]  # keys and values, by block
TOKENS = 1024  # of histories that are computed together in training: what a core's cache holds


@dataclass(frozen=True)
class TigerConfig:
    """Hyper-parameters; the defaults are the paper's.

    Attributes:
        d: width D.
        blocks: of the encoder, which reads the history.
        code_blocks: of the decoder, which writes codes.
        heads: attention heads h of both.
        head_width: E, of each head; h times E need not be D.
        feed: width of the feed-forward layers.
        window: longest history that is read, in items.
        dropout: on embeddings, attention weights, and what every part adds.
        precision: `bfloat16` or `float32`, of matrix products in training. What is stored and served is float32.
    """

    d: int = 128
    blocks: int = 4
    code_blocks: int = 4
    heads: int = 6
    head_width: int = 64
    feed: int = 1024
    window: int = 20
    dropout: float = 0.1
    precision: str = "bfloat16"

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "blocks", "code_blocks", "heads", "head_width", "feed", "window"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout {self.dropout} must be at least 0 and below 1")
        if self.precision not in ("bfloat16", "float32"):
            raise InvalidOption(f"precision {self.precision!r} is none of bfloat16, float32")


class Attention(nn.Module):
    """T5's attention: no biases, and no division by the root of the head's width, which the first weights make up for.

    Args:
        config: hyper-parameters.
    """

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        d, inner = config.d, config.heads * config.head_width
        self.heads = config.heads
        self.query, self.key, self.value = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, d, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.query.weight, std=(d * config.head_width) ** -0.5)
        for part in (self.key, self.value):
            nn.init.normal_(part.weight, std=d**-0.5)
        nn.init.normal_(self.out.weight, std=inner**-0.5)

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, float32 (B, h, E, T), and values, float32 (B, h, T, E), of x (B, T, D)."""
        return self._split(self.key(x)).transpose(-1, -2), self._split(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """float32 (B, Q, D), of x in that shape; bias float32, as (B, h, Q, T) or one that spreads to it."""
        weights = torch.softmax(self._split(self.query(x)) @ keys + bias, dim=-1)
        mixed: Tensor = self.out((self.dropout(weights) @ values).transpose(1, 2).flatten(-2))
        return mixed

    def _split(self, t: Tensor) -> Tensor:  # (B, Q, h E) -> (B, h, Q, E)
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention among its own tokens, in the decoder to the history as well, and feed-forward, each with its residual.

    Args:
        config: hyper-parameters.
        writes: whether it is the decoder's.
    """

    def __init__(self, config: TigerConfig, *, writes: bool) -> None:
        super().__init__()
        self.norm_own, self.own = nn.RMSNorm(config.d, eps=EPSILON), Attention(config)
        if writes:
            self.norm_history, self.history = nn.RMSNorm(config.d, eps=EPSILON), Attention(config)
        self.norm_feed = nn.RMSNorm(config.d, eps=EPSILON)
        self.wide, self.narrow = (
            nn.Linear(config.d, config.feed, bias=False),
            nn.Linear(config.feed, config.d, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.wide.weight, std=config.d**-0.5)
        nn.init.normal_(self.narrow.weight, std=config.feed**-0.5)

    def among(
        self, x: Tensor, bias: Tensor, before: tuple[Tensor, Tensor] | None = None, *, last: bool = False
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What its own tokens tell each other, and their keys and values.

        Args:
            x: float32 (B, Q, D).
            bias: float32, as (B, h, Q, T) or one that spreads to it, T keys.
            before: keys and values of T - Q tokens before these.
            last: compute only the last token's.

        Returns:
            float32 (B, Q, D), or (B, 1, D) for the last; and keys (B, h, E, Q) and values (B, h, Q, E).
        """
        normed = self.norm_own(x)
        own = keys, values = self.own.remember(normed)
        if before is not None:
            keys, values = torch.cat([before[0], keys], dim=-1), torch.cat([before[1], values], dim=-2)
        if last:
            x, normed, bias = x[:, -1:], normed[:, -1:], bias[..., -1:, :]
        return x + self.dropout(self.own(normed, keys, values, bias)), own

    def back(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """float32 (B, Q, D), from x in that shape, having looked at the history."""
        return x + self.dropout(self.history(self.norm_history(x), keys, values, bias))

    def think(self, x: Tensor) -> Tensor:
        """float32, in the shape of x."""
        return x + self.dropout(self.narrow(self.dropout(F.relu(self.wide(self.norm_feed(x))))))


@register("tiger")
class Tiger(nn.Module):
    """The generator.

    Args:
        config: hyper-parameters.
        ids: the semantic ids of the catalog.
    """

    paper: ClassVar[str] = "Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023"
    stage: ClassVar[str] = "generator"
    status: ClassVar[str] = "the paper's own form: see models/RESULTS.md"
    Config: ClassVar[type] = TigerConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "epochs": 200,
        "patience": 20,
        "batch": 40,  # windows: about the paper's 256 samples on Beauty
        "learning_rate": 3e-4,
        "beta2": 0.999,
        "decay": "constant",
        "warmup": 500,
    }
    semantic: ClassVar[Mapping[str, Any]] = {}
    inputs: ClassVar[tuple[str, ...]] = ("item_codes",)
    memory_names: ClassVar[tuple[str, ...]] = ("allowed", "keys", "values", "start", "start_keys", "start_values")
    exclude_seen: ClassVar[bool] = True

    def __init__(self, config: TigerConfig, ids: SemanticIds) -> None:
        super().__init__()
        self.config = config
        self.tables = Tables(codes=ids.table)
        self.vocabulary = ids.table.vocabulary
        levels, total, most = len(self.vocabulary), sum(self.vocabulary), max(self.vocabulary)
        starts = torch.tensor([0, *self.vocabulary]).cumsum(0)[:-1]
        inside = torch.arange(most) < torch.tensor(self.vocabulary)[:, None]  # (L, V): fewer on a smaller level
        here, there = torch.arange(config.window * levels), torch.arange(levels)
        self.vectors = nn.Embedding(total, config.d)
        self.start = nn.Parameter(torch.empty(config.d).normal_())  # begins every tuple
        self.encoder = nn.ModuleList(Block(config, writes=False) for _ in range(config.blocks))
        self.decoder = nn.ModuleList(Block(config, writes=True) for _ in range(config.code_blocks))
        self.norm_encoder = nn.RMSNorm(config.d, eps=EPSILON)
        self.norm_decoder = nn.RMSNorm(config.d, eps=EPSILON)
        self.bias_encoder = nn.Embedding(BUCKETS, config.heads)
        self.bias_decoder = nn.Embedding(BUCKETS, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        for vectors, std in (
            (self.vectors, 1.0),
            (self.bias_encoder, config.d**-0.5),
            (self.bias_decoder, config.d**-0.5),
        ):
            nn.init.normal_(vectors.weight, std=std)
        self.codes: Tensor
        self.starts: Tensor
        self.places: Tensor
        self.shut: Tensor
        self.around: Tensor
        self.before: Tensor
        self.causal: Tensor
        buffers = {
            "codes": torch.from_numpy(ids.table.codes.astype("int64")),
            "starts": starts,
            "places": (starts[:, None] + torch.arange(most)).clamp(max=total - 1),  # (L, V): the vectors of a level
            "shut": torch.zeros(levels, 1, most).masked_fill(~inside[:, None], -torch.inf),
            "around": buckets(here - here[:, None], both=True),
            "before": buckets(there - there[:, None], both=False),
            "causal": torch.zeros(levels, levels).masked_fill(there > there[:, None], -torch.inf),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def loss(self, feeds: tuple[Tensor, ...], targets: Tensor, real: Tensor) -> tuple[Tensor, int]:
        """The mean cross-entropy of the codes of every target.

        Args:
            feeds: int64 (B, n, L): the codes of the history.
            targets: int64 (B, n): catalog row that follows each slot.
            real: bool (B, n): slots that are no padding.

        Returns:
            The loss, and how many targets it is the mean of.
        """
        groups = list(self._samples(feeds[0], targets, real))
        positions = sum(len(wanted) for _, wanted in groups)
        if torch.is_grad_enabled():
            total = Apart.apply(self._summed, groups, *self.parameters())
        else:
            total = sum((self._summed(*group) for group in groups), torch.zeros(()))
        return total / max(1, positions * len(self.vocabulary)), positions

    def prefill(self, item_codes: Tensor) -> tuple[Tensor, ...]:
        """What every step of a request shares: what it read, and the token that begins every tuple.

        Args:
            item_codes: int64 (B, n, L); -1 where there is no item, which is before the oldest.

        Returns:
            As `memory_names` calls them: allowed bool (B, T), T = n L tokens; keys float32 (B, blocks, h, E, T) and
            values (B, blocks, h, T, E) of the history; and of the start token its state (B, D), keys and values.
        """
        allowed, states = self._read(item_codes)
        memory = self._remember(states)
        x, own = self._write(self.start.expand(item_codes.shape[0], 1, 1, -1), memory, allowed)
        keys, values, start_keys, start_values = (
            torch.stack(list(part), dim=1) for both in (memory, own) for part in zip(*both, strict=True)
        )
        return allowed, keys, values, x[:, 0, 0], start_keys, start_values

    def step(
        self, prefix: Tensor, allowed: Tensor, keys: Tensor, values: Tensor, start: Tensor, *own: Tensor
    ) -> Tensor:
        """float32 (B, M, V): log-probabilities of the next code.

        Args:
            prefix: int64 (B, M, S): 0, then the S - 1 codes that a beam has written; they are read again, so that no
                state has to be carried along and reordered.
            allowed, keys, values, start, own: see `prefill`.
        """
        beams, size = prefix.shape[1:]
        memory, before = (
            [(k[:, block], v[:, block]) for block in range(len(self.decoder))] for k, v in ((keys, values), own)
        )
        x = self.vectors(prefix[..., 1:] + self.starts[: size - 1])
        x, _ = self._write(x, memory, allowed, before, last=True)
        # Where nothing is written yet, there is no last token but the start.
        state = torch.cat([start[:, None, None].expand(-1, beams, -1, -1), x], dim=2)[:, :, -1]  # (B, M, D)
        level = torch.arange(size)[-1:]  # a shape cannot pick weights, a tensor can
        head, shut = self._head(self.places.index_select(0, level)[0]), self.shut.index_select(0, level)[0]
        return torch.log_softmax(state @ head.T + shut, dim=-1)

    def _summed(self, item_codes: Tensor, wanted: Tensor) -> Tensor:
        """The summed cross-entropy of the codes int64 (P, L) that followed histories int64 (P, n, L)."""
        with self._precision():
            allowed, states = self._read(item_codes)
            x = self.vectors(wanted[:, :-1] + self.starts[:-1])
            x = torch.cat([self.start.expand(len(wanted), 1, -1), x], dim=1)  # (P, L, D)
            x, _ = self._write(self.dropout(x)[:, None], self._remember(states), allowed)
        logits = torch.baddbmm(self.shut, x[:, 0].float().transpose(0, 1), self._head(self.places).transpose(1, 2))
        return F.cross_entropy(logits.flatten(0, 1), wanted.T.flatten(), reduction="sum")

    def _samples(self, item_codes: Tensor, targets: Tensor, real: Tensor) -> Iterator[Group]:
        """Histories int64 (P, n', L) and the codes of what followed (P, L), those of like length together.

        An item without a code is left out of histories, as serving leaves it out, and is no target.
        """
        coded, wanted = item_codes[..., 0] >= 0, self.codes[targets]
        asked = real & (wanted[..., 0] >= 0) & coded.cummax(1).values
        events, wanted = item_codes[coded], wanted[asked]  # (E, L), line after line; (P, L)
        ends = coded.flatten().cumsum(0).view_as(coded)[asked]  # behind the newest event of each sample
        lengths = coded.cumsum(1)[asked].clamp(max=self.config.window)
        order = lengths.argsort(stable=True)
        tokens = (lengths[order] * len(self.vocabulary)).cumsum(0)
        for group in order.split((tokens // TOKENS).bincount().tolist()):
            if len(group):
                back = torch.arange(int(lengths[group[-1]]), 0, -1)  # events before the end
                history = events[(ends[group, None] - back).clamp(min=0)]
                yield history.masked_fill((back > lengths[group, None]).unsqueeze(-1), -1), wanted[group]

    def _read(self, item_codes: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are any, bool (B, T), and their states, float32 (B, T, D)."""
        allowed = (item_codes >= 0).flatten(1)
        size = allowed.shape[1]
        x = self.dropout(self.vectors((item_codes.clamp(min=0) + self.starts).flatten(1)))
        bias = self.bias_encoder(self.around).permute(2, 0, 1)[:, :size, :size] + _closed(allowed)
        for block in map(_block, self.encoder):
            x = block.think(block.among(x, bias)[0])
        return allowed, self.dropout(self.norm_encoder(x))

    def _remember(self, states: Tensor) -> Pairs:
        return [block.history.remember(states) for block in map(_block, self.decoder)]

    def _write(
        self, x: Tensor, memory: Pairs, allowed: Tensor, before: Pairs | None = None, *, last: bool = False
    ) -> tuple[Tensor, Pairs]:
        """The decoder.

        The M beams of a request share its memory, so to the history they are one run of M Q queries.

        Args:
            x: float32 (B, M, Q, D): vectors of the tokens that are written.
            memory: keys and values of the history, by block.
            allowed: bool (B, T).
            before: keys and values of the start token, where x begins behind it.
            last: compute only the last token's.

        Returns:
            float32 (B, M, Q, D), or (B, M, 1, D) for the last, and keys and values of these tokens by block.
        """
        (lines, beams, size, d), first = x.shape, 0 if before is None else 1
        reach = slice(first, first + size), slice(None, first + size)
        bias = self.bias_decoder(self.before[reach]).permute(2, 0, 1) + self.causal[reach]
        closed, own = _closed(allowed), []
        for depth, block in enumerate(map(_block, self.decoder)):
            earlier = None
            if before is not None:
                keys, values = (t[:, None].expand(-1, beams, -1, -1, -1).flatten(0, 1) for t in before[depth])
                earlier = keys, values
            is_end = last and depth == len(memory) - 1
            x, written = block.among(x.flatten(0, 1), bias, earlier, last=is_end)
            own.append(written)
            size = x.shape[1]
            # Sizes are named: of no tokens at all, as the first step has, none could be inferred.
            x = block.think(block.back(x.reshape(lines, beams * size, d), *memory[depth], closed))
            x = x.reshape(lines, beams, size, d)
        return self.dropout(self.norm_decoder(x)), own

    def _head(self, places: Tensor) -> Tensor:
        """Output vectors: the input vectors at these places, scaled."""
        return self.vectors(places) * self.config.d**-0.5

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16")


class Apart(torch.autograd.Function):
    """A sum over groups of samples, whose gradient is formed group by group: only one group's states are ever held."""

    @staticmethod
    def forward(ctx: Any, summed: Callable[..., Tensor], groups: Sequence[Group], *weights: Tensor) -> Tensor:
        """float32 scalar; see the class."""
        total, grads = torch.zeros(()), [torch.zeros_like(w) for w in weights]
        for group in groups:
            with torch.enable_grad():
                part = summed(*group)
            for grad, more in zip(grads, torch.autograd.grad(part, weights), strict=True):
                grad += more
            total += part.detach()
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See the class."""
        return None, None, *(grad * own for own in ctx.saved_tensors)


def buckets(distance: Tensor, *, both: bool) -> Tensor:
    """int64, in the shape of `distance`, key minus query: the bucket of each.

    Half of the buckets hold one distance each, the others grow with its logarithm up to `FARTHEST`.

    Args:
        both: whether later keys have buckets of their own; else they share that of distance 0.

    Source:
        Raffel et al. (2020), section 2.1.
    """
    size = BUCKETS // 2 if both else BUCKETS
    ahead = (distance > 0).long() * size if both else 0
    far = distance.abs() if both else (-distance).clamp(min=0)
    exact = size // 2
    grown = (far.double() / exact).clamp(min=1).log() / math.log(FARTHEST / exact) * (size - exact)
    return ahead + torch.where(far < exact, far, (exact + grown.long()).clamp(max=size - 1))


def _closed(allowed: Tensor) -> Tensor:
    """float32 (B, 1, 1, T): 0 where a token may be seen, -inf where not."""
    return torch.zeros(()).masked_fill(~allowed, -torch.inf)[:, None, None]


def _block(module: nn.Module) -> Block:
    return cast(Block, module)
