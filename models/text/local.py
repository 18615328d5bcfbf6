"""A small transformer that learns from the catalog's texts alone: no download, no other data, minutes.

Its pieces are byte-level, so no text is unknown to it. It learns to tell items apart: two random halves of the words of
one text shall be nearer to each other than to those of the other texts of the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from models.progress import Progress
from models.text.backbone import Backbone, BackboneConfig, pool
from models.text.registry import PROVIDERS, TextOptions
from models.text.serving import served
from retrieval.text import OnnxText

WIDTH = 128
HEAD = 32
BATCH = 128
LEARNING_RATE = 1e-3
TEMPERATURE = 0.05
KEPT = 0.6  # of the tokens of a text, in each view of it
PAD = "<pad>"


@PROVIDERS.register("local")
def local(texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> OnnxText:
    """`text_layers` blocks of width `text_width`, over a vocabulary of at most `text_vocabulary` pieces."""
    backbone, tokenizer = trained(texts, options, seed=seed, progress=progress)
    return served(backbone, tokenizer.to_str(), pooling="mean", tokens=options.text_tokens)


def trained(texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> tuple[Backbone, Tokenizer]:
    """The transformer and its tokenizer, before they are frozen; texts become vectors by the mean of their states."""
    tokenizer = trained_tokenizer(texts, options.text_vocabulary)
    tokenizer.enable_truncation(options.text_tokens)
    ids = [torch.tensor(encoded.ids) for encoded in tokenizer.encode_batch(list(texts))]
    heads = max(1, round((options.text_width or WIDTH) / HEAD))
    config = BackboneConfig(
        vocabulary=tokenizer.get_vocab_size(),
        d=heads * HEAD,
        layers=options.text_layers,
        heads=heads,
        key_heads=heads,
        head=HEAD,
        expansion=3 * heads * HEAD,
        positions=options.text_tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(config)
        loss = _train(backbone, ids, options.text_epochs, np.random.default_rng(seed), progress)
    progress.say(f"local: {config.vocabulary:,} pieces, vectors of {config.d}, loss {loss:.3f}")
    tokenizer.no_truncation()
    return backbone, tokenizer


def trained_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-level pairs, merged from the most frequent on; piece 0 is padding.

    Source: Sennrich, Haddow, Birch, Neural Machine Translation of Rare Words with Subword Units, ACL 2016, section 3.2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train(
    backbone: Backbone, ids: Sequence[Tensor], epochs: int, rng: np.random.Generator, progress: Progress
) -> float:
    """Trains in place; returns the mean loss of the last epoch."""
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    lengths = np.array([len(i) for i in ids])
    batches = max(1, len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=epochs * batches, pct_start=0.1
    )
    total = 0.0
    for _ in progress.bar(range(epochs), "local", unit="epoch"):
        total = 0.0
        # Texts of like length together, so that little is padded; which of them, and in which order, is drawn anew.
        order = np.argsort(lengths + rng.uniform(0, 8, len(ids)))
        for at in rng.permutation(batches):
            chosen = [ids[i] for i in np.array_split(order, batches)[at]]
            first, second = (_vectors(backbone, [_view(i, rng) for i in chosen]) for _ in range(2))
            scores = first @ second.T / TEMPERATURE
            target = torch.arange(len(chosen))
            loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() / batches
    return total


def _view(ids: Tensor, rng: np.random.Generator) -> Tensor:
    """Some of the tokens, in their order; at least one."""
    kept = rng.random(len(ids)) < KEPT
    kept[rng.integers(len(ids))] = True
    return ids[torch.from_numpy(kept)]


def _vectors(backbone: Backbone, views: Sequence[Tensor]) -> Tensor:
    """float32 (B, D), each of length one."""
    padded = torch.nn.utils.rnn.pad_sequence(list(views), batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(view)] for view in views])
    return F.normalize(pool(backbone(backbone.embed(padded), mask)[-1], mask, "mean"), dim=1)
