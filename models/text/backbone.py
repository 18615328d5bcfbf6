"""One transformer for every text model: BERT, Llama, Mistral and Qwen2 are settings of it, and so is our own.

A recommender that reads text (HLLM and its kin) trains these very modules; the providers of this folder only freeze
and export them. The interface: `embed` ids, run them or any vectors through `forward`, one block at a time through
`layer` where a model looks inside, `pool` the last states, `lm_logits` for words.

Letters: B texts, T tokens, D width, H heads.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True)
class BackboneConfig:
    """Shape and arrangement; the defaults are our own small encoder.

    Attributes:
        vocabulary: token ids.
        d: width D.
        layers: blocks.
        heads: attention heads.
        key_heads: heads of keys and values, each shared by heads / key_heads queries.
        head: width of a head.
        expansion: width of the feed-forward layer.
        norm: `rms` in front of each part and at the end, or `layer` behind each part and behind the embeddings.
        rotary: whether positions turn queries and keys; otherwise they are learnt vectors.
        positions: longest text in tokens.
        gated: whether the feed-forward layer is a SiLU gate times a projection; otherwise one GELU layer.
        biases: of queries, keys and values.
        causal: whether a token sees only what is before it.
        epsilon: of every normalisation.
        base: of the rotary angles.
        dropout: behind attention, feed-forward and embeddings, in training.
    """

    vocabulary: int
    d: int = 128
    layers: int = 2
    heads: int = 4
    key_heads: int = 4
    head: int = 32
    expansion: int = 384
    norm: Literal["rms", "layer"] = "rms"
    rotary: bool = True
    positions: int = 128
    gated: bool = True
    biases: bool = False
    causal: bool = False
    epsilon: float = 1e-6
    base: float = 10_000.0
    dropout: float = 0.0


class Backbone(nn.Module):
    """The transformer.

    Sources: Devlin et al., BERT, NAACL 2019; Touvron et al., LLaMA, 2023, section 2.2; Su et al., RoFormer, 2021.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocabulary, config.d)
        self.places = None if config.rotary else nn.Embedding(config.positions, config.d)
        self.entry = nn.Identity() if config.norm == "rms" else _norm(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.exit = _norm(config) if config.norm == "rms" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """float32 (B, T, D): the words' own vectors, of ids (B, T)."""
        return self.words(ids)

    def forward(self, embedded: Tensor, mask: Tensor, *, causal: bool | None = None) -> list[Tensor]:
        """Every state from the embeddings to the normalised last one: layers + 1 tensors (B, T, D).

        Args:
            embedded: (B, T, D), from `embed` or from anywhere else.
            mask: (B, T), true or 1 where there is a token. Positions count the real tokens, so padding may stand on
                either side.
            causal: overrides the configuration.
        """
        present = mask.bool()
        positions = (present.long().cumsum(1) - 1).clamp(min=0)
        if self.places is not None:
            embedded = embedded + self.places(positions)
        states = [self.dropout(self.entry(embedded))]
        seen = self.seen(present, self.config.causal if causal is None else causal)
        for block in self.blocks:
            states.append(block(states[-1], positions, seen))
        states[-1] = self.exit(states[-1])
        return states

    def layer(self, at: int, hidden: Tensor, mask: Tensor, *, causal: bool | None = None) -> Tensor:
        """One block alone: (B, T, D) to (B, T, D), without the last normalisation."""
        present = mask.bool()
        seen = self.seen(present, self.config.causal if causal is None else causal)
        return self.blocks[at](hidden, (present.long().cumsum(1) - 1).clamp(min=0), seen)

    def seen(self, present: Tensor, causal: bool) -> Tensor:
        """bool (B, 1, T, T): which keys each query sees. Every token sees itself, so that padding is a number too."""
        length = present.shape[1]
        at = torch.arange(length, device=present.device)
        seen = present[:, None, None, :] | (at[:, None] == at)
        return seen & (at[:, None] >= at) if causal else seen.expand(-1, -1, length, -1)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(B, T, vocabulary): scores of words, by the embeddings themselves."""
        return hidden @ self.words.weight.T

    def linear_modules(self) -> list[str]:
        """Names of the linear maps inside the blocks: what a low-rank adapter may wrap."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]


class Block(nn.Module):
    """Attention and feed-forward, each added to what came in."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        d, wide = config.d, config.heads * config.head
        narrow = config.key_heads * config.head
        self.query = nn.Linear(d, wide, bias=config.biases)
        self.key = nn.Linear(d, narrow, bias=config.biases)
        self.value = nn.Linear(d, narrow, bias=config.biases)
        self.out = nn.Linear(wide, d, bias=not config.gated)
        self.gate = nn.Linear(d, config.expansion, bias=False) if config.gated else None
        self.up = nn.Linear(d, config.expansion, bias=not config.gated)
        self.down = nn.Linear(config.expansion, d, bias=not config.gated)
        self.attention_norm, self.forward_norm = _norm(config), _norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        if self.config.norm == "rms":
            hidden = hidden + self.dropout(self.attend(self.attention_norm(hidden), positions, seen))
            return hidden + self.dropout(self.feed(self.forward_norm(hidden)))
        hidden = self.attention_norm(hidden + self.dropout(self.attend(hidden, positions, seen)))
        return self.forward_norm(hidden + self.dropout(self.feed(hidden)))

    def attend(self, hidden: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """(B, T, D): what each token gathers from those that it sees."""
        query, key, value = (
            linear(hidden).unflatten(-1, (-1, self.config.head)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (B, H, T, D / H)
        if self.config.rotary:
            query, key = (turned(part, positions, self.config.base) for part in (query, key))
        if shared := self.config.heads // self.config.key_heads - 1:
            key, value = (part.repeat_interleave(shared + 1, dim=1) for part in (key, value))
        return self.out(F.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2))

    def feed(self, hidden: Tensor) -> Tensor:
        """(B, T, D): the feed-forward layer."""
        if self.gate is None:
            return self.down(F.gelu(self.up(hidden)))
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def turned(part: Tensor, positions: Tensor, base: float) -> Tensor:
    """Queries or keys (B, H, T, W) turned by their positions (B, T).

    Coordinate i is paired with i + W / 2, as the public checkpoints have it, and each pair is a plane that turns by
    position * base^(-2 i / W).
    """
    half = part.shape[-1] // 2
    speed = base ** (-torch.arange(half, dtype=torch.float32, device=part.device) / half)
    angle = positions[:, None, :, None].float() * speed
    first, second = part[..., :half], part[..., half:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(B, D): one vector of the last states (B, T, D): the mean of the real tokens, the first or the last of them."""
    present = mask.bool()
    if how == "mean":
        weights = present.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    at = present.long()
    place = at.argmax(1) if how == "cls" else (at * torch.arange(at.shape[1], device=at.device)).argmax(1)
    return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]


def _norm(config: BackboneConfig) -> nn.Module:
    if config.norm == "rms":
        return nn.RMSNorm(config.d, eps=config.epsilon)
    return nn.LayerNorm(config.d, eps=config.epsilon)
