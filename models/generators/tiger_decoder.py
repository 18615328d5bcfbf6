"""TIGER in a form that learns every target of a sequence in one pass: a decoder only, over items and their codes.

Paper: Rajput et al. (2023), "Recommender Systems with Generative Retrieval", NeurIPS (TIGER). The idea is the
paper's: an item is a tuple of codes from its text, and the model writes the tuple of the next item, code by code. The
form is not:

- The paper reads the history as one flat run of codes through a bidirectional encoder, so each target of a user needs a
  pass of its own. Here a history is a causal run of items, each the sum of the embeddings of its codes, and every slot
  predicts its successor: one pass trains all targets of a user.
- The codes of the next item are written by blocks that look back at the history's slots (cross-attention) from the
  state of the newest slot plus the codes written so far. That state is a sum, so a step costs one position per beam and
  carries nothing that would have to be reordered with the beams.
- No user token; one softmax over its own V codewords per level.

`models.generators.tiger` is the paper's own form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoders.sasrec import Block, SASRecConfig
from models.errors import InvalidOption
from models.registry import register
from models.semantic_ids import SemanticIds
from retrieval.inputs import Tables

NEVER = -1e9  # a logit whose probability is zero; an infinite one would make the moving average of weights NaN


@dataclass(frozen=True)
class TigerDecoderConfig:
    """Hyper-parameters; the defaults are those that did best here, see `models/RESULTS.md`.

    Attributes:
        d: width D.
        blocks: self-attention blocks over the history.
        code_blocks: blocks that write codes.
        heads: attention heads of both.
        window: longest history that is read, in items.
        dropout: on embeddings, attention output and feed-forward.
        expansion: feed-forward width in units of d.
        smoothing: share of a target's probability that is spread over the other codewords of its level.
    """

    d: int = 128
    blocks: int = 2
    code_blocks: int = 2
    heads: int = 4
    window: int = 50
    dropout: float = 0.2
    expansion: int = 4
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "blocks", "code_blocks", "heads", "window", "expansion"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.d % self.heads:
            raise InvalidOption(f"d {self.d} is not divisible by heads {self.heads}")


class CodeBlock(nn.Module):
    """Looks back at the history, then thinks: cross-attention and feed-forward with their residuals, pre-norm."""

    def __init__(self, config: TigerDecoderConfig) -> None:
        super().__init__()
        d = config.d
        self.heads = config.heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.wide, self.narrow = nn.Linear(d, config.expansion * d), nn.Linear(config.expansion * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def remember(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the history's states: (B, n, D) -> two of (B, h, n, D/h)."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
        """float32 (B, Q, D), from x of that shape, keys and values (B, h, n, D/h), allowed bool (B, 1, Q or 1, n)."""
        asked = self._split(self.query(self.norm_attention(x)))
        seen = F.scaled_dot_product_attention(asked, keys, values, attn_mask=allowed)
        x = x + self.dropout(self.out(seen.transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm_feed(x)))))

    def _split(self, t: Tensor) -> Tensor:  # (B, Q, D) -> (B, h, Q, D/h)
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@register("tiger-decoder")
class TigerDecoder(nn.Module):
    """The generator.

    Args:
        config: hyper-parameters.
        ids: the semantic ids of the catalog.
    """

    paper: ClassVar[str] = "Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023"
    stage: ClassVar[str] = "generator"
    status: ClassVar[str] = "decoder-only form, above the paper's figures on Beauty: see models/RESULTS.md"
    Config: ClassVar[type] = TigerDecoderConfig
    recipe: ClassVar[Mapping[str, Any]] = {"epochs": 32, "average": 0.998}
    semantic: ClassVar[Mapping[str, Any]] = {}
    inputs: ClassVar[tuple[str, ...]] = ("item_codes",)
    memory_names: ClassVar[tuple[str, ...]] = ("state", "allowed", "keys", "values")
    exclude_seen: ClassVar[bool] = True

    def __init__(self, config: TigerDecoderConfig, ids: SemanticIds) -> None:
        super().__init__()
        self.config = config
        self.tables = Tables(codes=ids.table)
        self.vocabulary = ids.table.vocabulary
        levels, total = len(self.vocabulary), sum(self.vocabulary)
        starts = torch.tensor([0, *self.vocabulary]).cumsum(0)[:-1]
        self.codes: Tensor
        self.starts: Tensor
        self.offsets: Tensor
        self.causal: Tensor
        self.itself: Tensor
        self.register_buffer("codes", torch.from_numpy(ids.table.codes.astype("int64")), persistent=False)
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("offsets", torch.cat([starts[:1], starts[:-1]]), persistent=False)
        self.read = nn.Embedding(total, config.d)  # codes of the history
        self.written = nn.Embedding(total, config.d)  # codes of the item that is being written
        self.turn = nn.Parameter(torch.empty(levels, config.d))  # which code is next
        self.positions = nn.Parameter(torch.empty(config.window, config.d))
        self.norm_in = nn.LayerNorm(config.d)
        encoder = SASRecConfig(
            d=config.d, heads=config.heads, window=config.window, dropout=config.dropout, expansion=config.expansion
        )
        self.blocks = nn.ModuleList(Block(encoder) for _ in range(config.blocks))
        self.code_blocks = nn.ModuleList(CodeBlock(config) for _ in range(config.code_blocks))
        self.norm_out = nn.LayerNorm(config.d)
        self.head = nn.Parameter(torch.empty(levels, config.d, max(self.vocabulary)))
        self.bias = nn.Parameter(torch.zeros(levels, 1, max(self.vocabulary)))
        self.dropout = nn.Dropout(config.dropout)
        causal = torch.ones(config.window, config.window, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self.register_buffer("itself", torch.eye(config.window, dtype=torch.bool), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for weights in (self.turn, self.positions, self.head):
            nn.init.normal_(weights, std=0.02)
        # What was written stands beside a normalised state, and must be heard there from the first step on.
        nn.init.normal_(self.written.weight, std=0.5)
        nn.init.normal_(self.turn, std=0.5)
        for level, size in enumerate(self.vocabulary):
            self.bias.data[level, :, size:] = NEVER  # a level with fewer codewords than the largest

    def loss(self, feeds: tuple[Tensor, ...], targets: Tensor, real: Tensor) -> tuple[Tensor, int]:
        """The mean cross-entropy of the codes of every target.

        Args:
            feeds: int64 (B, n, L): the codes of the history.
            targets: int64 (B, n): catalog row that follows each slot.
            real: bool (B, n): slots that are no padding.

        Returns:
            The loss, and how many targets it is the mean of.
        """
        states, allowed = self._states(*feeds)
        wanted = self.codes[targets]  # (B, n, L)
        real = real & (wanted[..., 0] >= 0)
        wanted = wanted.clamp(min=0)
        prefix = torch.zeros_like(wanted)
        prefix[..., 1:] = wanted[..., :-1]
        x = self._begin(states.unsqueeze(2), prefix)  # (B, n, L, D)
        x = self._write(x.flatten(1, 2), self._remember(states), allowed.repeat_interleave(len(self.vocabulary), dim=2))
        x = x.unflatten(1, (real.shape[1], -1))[real]  # (P, L, D)
        logits = torch.baddbmm(self.bias, x.transpose(0, 1), self.head)  # (L, P, V)
        wanted = wanted[real].T  # (L, P)
        total = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), label_smoothing=self.config.smoothing, reduction="sum"
        )
        return total / max(1, wanted.numel()), wanted.shape[1]  # the mean of nothing would be NaN

    def prefill(self, item_codes: Tensor) -> tuple[Tensor, ...]:
        """What every step of a request shares.

        Args:
            item_codes: int64 (B, n, L); -1 where there is no item.

        Returns:
            state float32 (B, D), allowed bool (B, n), and keys and values float32 (B, blocks, h, n, D/h) each.
        """
        states, allowed = self._states(item_codes)
        memory = self._remember(states)
        keys, values = (torch.stack(list(part), dim=1) for part in zip(*memory, strict=True))
        return states[:, -1], allowed[:, 0, -1], keys, values

    def step(self, prefix: Tensor, state: Tensor, allowed: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """float32 (B, M, V): log-probabilities of the next code.

        Args:
            prefix: int64 (B, M, T + 1): 0, then the T codes that a beam has written.
            state, allowed, keys, values: see `prefill`.
        """
        written = prefix.shape[2]  # with the leading 0, so the level that comes is one below
        embedded = self.written(prefix + self.offsets[:written]) * (torch.arange(written) > 0).unsqueeze(-1)
        x = state.unsqueeze(1) + embedded.sum(2)  # (B, M, D)
        level = torch.arange(written)[-1:]  # a shape cannot pick weights, a tensor can
        memory = [(keys[:, block], values[:, block]) for block in range(len(self.code_blocks))]
        x = self._write(x + self.turn.index_select(0, level), memory, allowed[:, None, None])
        logits = x @ self.head.index_select(0, level)[0] + self.bias.index_select(0, level)[0]
        return torch.log_softmax(logits, dim=-1)

    def _states(self, item_codes: Tensor) -> tuple[Tensor, Tensor]:
        """The history's slots, float32 (B, n, D), and which of them each slot may see, bool (B, 1, n, n)."""
        length = item_codes.shape[1]
        real = item_codes[..., 0] >= 0  # (B, n)
        x = self.read(item_codes.clamp(min=0) + self.starts).sum(2)  # (B, n, D)
        x = x + self.positions[self.config.window - length :]
        x = self.dropout(self.norm_in(x)) * real.unsqueeze(-1)
        allowed = (self.causal[:length, :length] & real[:, None, None, :]) | self.itself[:length, :length]
        for block in self.blocks:
            x = block(x, allowed)
        return x, allowed

    def _remember(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [cast(CodeBlock, block).remember(states) for block in self.code_blocks]

    def _begin(self, states: Tensor, prefix: Tensor) -> Tensor:
        """float32 (B, n, L, D): what each level starts from when the codes before it are known (teacher forcing)."""
        embedded = self.written(prefix[..., 1:] + self.starts[:-1])  # (B, n, L - 1, D)
        embedded = F.pad(embedded, (0, 0, 1, 0)).cumsum(2)
        return states + self.dropout(embedded) + self.turn

    def _write(self, x: Tensor, memory: list[tuple[Tensor, Tensor]], allowed: Tensor) -> Tensor:
        for block, (keys, values) in zip(self.code_blocks, memory, strict=True):
            x = block(x, keys, values, allowed)
        out: Tensor = self.norm_out(x)
        return out
