"""SASRec: a causal self-attention encoder over a user's items, trained to predict the next one.

Paper: Kang and McAuley (2018), "Self-Attentive Sequential Recommendation", ICDM. Training choices (losses, negatives)
live in `models.losses` and follow Petrov and Macdonald (2023), "gSASRec", RecSys, and Klenitskiy and Vasilev (2023),
"Turning Dross Into Gold Loss", RecSys.

Three arrangements of normalisation are one option, since published results use all of them:
`original` (only the query is normalised, and the residual taps the normalised tensor, as the authors' code has it),
`pre` and `post`.

Deviations:
- Positions are counted from the right: the newest event has position L - 1 whatever the padding, which is what left
  padding to a fixed length gives, so a shorter window yields the same query.
- Padded keys are masked in every arrangement; the most used public port does not.
- An output projection after attention is an option (`project`); the authors' code has none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InvalidOption
from models.registry import register
from retrieval.sequences import PAD_ROW


@dataclass(frozen=True)
class SASRecConfig:
    """Hyper-parameters of the encoder; the defaults are those that did best here, see `models/RESULTS.md`.

    Attributes:
        d: width D.
        blocks: self-attention blocks.
        heads: attention heads; the published settings use one.
        window: longest history L that is read.
        dropout: on embeddings, attention output and feed-forward.
        attention_dropout: on attention weights. Above zero it turns the fused attention kernel off.
        norm: `original`, `pre` or `post`.
        activation: `relu` or `gelu`.
        expansion: feed-forward width in units of d.
        project: whether attention ends in an output projection.
        scale: whether item embeddings are multiplied by sqrt(d) on the way in.
        embedding_norm: whether the sum of item and position embeddings is normalised.
        epsilon: of every layer normalisation.
    """

    d: int = 64
    blocks: int = 2
    heads: int = 2
    window: int = 50
    dropout: float = 0.2
    attention_dropout: float = 0.0
    norm: str = "post"
    activation: str = "gelu"
    expansion: int = 4
    project: bool = True
    scale: bool = False
    embedding_norm: bool = True
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "blocks", "heads", "window", "expansion"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        for name, known in (("norm", ("original", "pre", "post")), ("activation", ("relu", "gelu"))):
            if getattr(self, name) not in known:
                raise InvalidOption(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if self.d % self.heads:
            raise InvalidOption(f"d {self.d} is not divisible by heads {self.heads}")
        if not self.epsilon > 0:
            raise InvalidOption(f"epsilon {self.epsilon} must be above zero")


class Block(nn.Module):
    """Self-attention and feed-forward with their residuals."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        d = config.d
        self.config = config
        self.query, self.key, self.value = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.out = nn.Linear(d, d) if config.project else nn.Identity()
        self.norm_attention = nn.LayerNorm(d, eps=config.epsilon)
        self.norm_feed = nn.LayerNorm(d, eps=config.epsilon)
        self.wide, self.narrow = nn.Linear(d, config.expansion * d), nn.Linear(config.expansion * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor, *, last: bool = False) -> Tensor:
        """One block.

        Args:
            x: float32, shape (B, L, D).
            allowed: bool, shape (B, 1, L, L): which keys each query may see.
            last: compute only the newest slot; keys and values still come from all of them.

        Returns:
            float32, shape (B, L, D), or (B, 1, D) when `last`.
        """
        normed = x if self.config.norm == "post" else self.norm_attention(x)
        source = normed if self.config.norm == "pre" else x
        q = normed
        if last:
            q, x, allowed = q[:, -1:], x[:, -1:], allowed[:, :, -1:]
        attended = self.dropout(self.out(self._attend(q, source, allowed)))
        if self.config.norm == "original":
            z = self.norm_feed(q + attended)
            return z + self._feed(z)
        x = x + attended
        if self.config.norm == "pre":
            return x + self._feed(self.norm_feed(x))
        x = self.norm_attention(x)
        return self.norm_feed(x + self._feed(x))

    def _attend(self, q: Tensor, source: Tensor, allowed: Tensor) -> Tensor:
        h = self.config.heads

        def split(t: Tensor) -> Tensor:  # (B, L, D) -> (B, h, L, D/h)
            return t.unflatten(-1, (h, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(q)),
            split(self.key(source)),
            split(self.value(source)),
            attn_mask=allowed,
            dropout_p=self.config.attention_dropout if self.training else 0.0,
        )
        return mixed.transpose(1, 2).flatten(-2)

    def _feed(self, x: Tensor) -> Tensor:
        act = F.relu if self.config.activation == "relu" else F.gelu
        inner = act(self.wide(x))
        if self.config.norm != "post":
            inner = self.dropout(inner)
        return self.dropout(self.narrow(inner))


@register("sasrec")
class SASRec(nn.Module):
    """The encoder. One table serves as input and output embedding.

    Args:
        config: hyper-parameters.
        items: N; rows 1 to N are items, row 0 is padding and stays zero.
    """

    paper: ClassVar[str] = "Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018"
    stage: ClassVar[str] = "encoder"
    status: ClassVar[str] = "reproduced: see models/RESULTS.md"
    Config: ClassVar[type] = SASRecConfig
    recipe: ClassVar[Mapping[str, Any]] = {}
    inputs: ClassVar[tuple[str, ...]] = ("item_rows",)
    exclude_seen: ClassVar[bool] = True

    def __init__(self, config: SASRecConfig, items: int) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(items + 1, config.d, padding_idx=PAD_ROW)
        self.positions = nn.Parameter(torch.empty(config.window, config.d))
        self.norm_in = nn.LayerNorm(config.d, eps=config.epsilon) if config.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        # Post-norm blocks end normalised; the other two need one more.
        post = config.norm == "post"
        self.norm_out = nn.Identity() if post else nn.LayerNorm(config.d, eps=config.epsilon)
        self.dropout = nn.Dropout(config.dropout)
        causal = torch.ones(config.window, config.window, dtype=torch.bool).tril()
        self.causal: Tensor
        self.itself: Tensor
        self.register_buffer("causal", causal, persistent=False)
        self.register_buffer("itself", torch.eye(config.window, dtype=torch.bool), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # With the factor sqrt(d) on the way in, this makes inputs of unit size and outputs of small ones.
        nn.init.normal_(self.items.weight, std=1.0 / math.sqrt(self.config.d) if self.config.scale else 0.02)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.zeros_(self.items.weight.data[PAD_ROW])

    def hidden(self, item_rows: Tensor) -> Tensor:
        """float32 (B, L, D): at each slot the query for the next item; slots of padding hold nothing of meaning."""
        x, allowed = self._embed(item_rows)
        for block in self.blocks:
            x = block(x, allowed)
        out: Tensor = self.norm_out(x)
        return out

    def forward(self, item_rows: Tensor) -> Tensor:
        """float32 (B, D): the query of the newest slot. The last block computes nothing else."""
        x, allowed = self._embed(item_rows)
        for block in list(self.blocks)[:-1]:
            x = block(x, allowed)
        out: Tensor = self.norm_out(list(self.blocks)[-1](x, allowed, last=True))
        return out[:, 0]

    def item_vectors(self) -> Tensor:
        """float32 (N + 1, D): the shared table, without the factor of the input side."""
        return self.items.weight

    def _embed(self, item_rows: Tensor) -> tuple[Tensor, Tensor]:
        length = item_rows.shape[1]
        x = self.items(item_rows)  # (B, L, D)
        if self.config.scale:
            x = x * math.sqrt(self.config.d)
        x = x + self.positions[self.config.window - length :]
        real = item_rows != PAD_ROW  # (B, L)
        x = self.dropout(self.norm_in(x)) * real.unsqueeze(-1)
        # A padded query sees itself: a row without any key would be NaN, and NaN times zero is NaN.
        allowed = (self.causal[:length, :length] & real[:, None, None, :]) | self.itself[:length, :length]
        return x, allowed


@dataclass(frozen=True)
class PaperConfig(SASRecConfig):
    """The arrangement of the paper and of its authors' code; D stays 64, where the paper has 50, as in later tables."""

    heads: int = 1
    window: int = 200
    norm: str = "original"
    activation: str = "relu"
    expansion: int = 1
    project: bool = False
    scale: bool = True
    embedding_norm: bool = False


@register("sasrec-2018")
class PaperSASRec(SASRec):
    """The same encoder with the settings of 2018: binary cross-entropy, one negative, the newest window of a user."""

    status: ClassVar[str] = "the paper's own training, kept as the baseline that most tables quote"
    Config: ClassVar[type] = PaperConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "loss": "bce",
        "windows": "last",
        "batch": 128,
        "decay": "constant",
        "epochs": 200,
        "patience": 20,
    }


def from_icsrec(arrays: Mapping[str, np.ndarray]) -> SASRec:
    """Our encoder with the released weights of ICSRec, whose serving half is a post-norm Transformer.

    Args:
        arrays: the released arrays by name; row 0 of the item table is padding, its last row an unused mask.

    Returns:
        The encoder in evaluation mode.

    Source:
        Qin et al. (2024), "Intent Contrastive Learning with Cross Subsequences", WSDM, released checkpoints.
    """
    items = arrays["item_embeddings.weight"][:-1]
    window, d = arrays["position_embeddings.weight"].shape
    config = SASRecConfig(
        d=d,
        heads=2,
        window=window,
        dropout=0.0,
        norm="post",
        activation="gelu",
        expansion=4,
        project=True,
        scale=False,
        embedding_norm=True,
        epsilon=1e-12,
    )
    model = SASRec(config, len(items) - 1)
    state = {"items.weight": items.copy(), "positions": arrays["position_embeddings.weight"]}
    state["items.weight"][PAD_ROW] = 0.0  # masked everywhere, and never a candidate
    names = {
        "attention.query": "query",
        "attention.key": "key",
        "attention.value": "value",
        "attention.dense": "out",
        "attention.LayerNorm": "norm_attention",
        "intermediate.dense_1": "wide",
        "intermediate.dense_2": "narrow",
        "intermediate.LayerNorm": "norm_feed",
    }
    for kind in ("weight", "bias"):
        state[f"norm_in.{kind}"] = arrays[f"LayerNorm.{kind}"]
        for layer in range(config.blocks):
            for theirs, ours in names.items():
                state[f"blocks.{layer}.{ours}.{kind}"] = arrays[f"item_encoder.layer.{layer}.{theirs}.{kind}"]
    model.load_state_dict({name: torch.from_numpy(np.asarray(a)) for name, a in state.items()})
    return model.eval()
