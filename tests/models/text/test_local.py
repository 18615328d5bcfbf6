import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.progress import Progress
from models.text.backbone import Backbone, pool
from models.text.local import local, trained, trained_tokenizer
from models.text.registry import TextOptions

THINGS = ["red lamp", "desk chair", "wool shirt", "copper kettle"]
TEXTS = [f"{thing} number {at} of the {thing} collection" for at in range(20) for thing in THINGS]
SMALL = TextOptions(text_width=32, text_layers=1, text_vocabulary=320, text_epochs=4, text_tokens=32)


def vectors_of(backbone: Backbone, tokenizer: Tokenizer) -> np.ndarray:
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(TEXTS)
    ids, mask = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
    with torch.inference_mode():
        pooled = pool(backbone(backbone.embed(ids), mask)[-1], mask, "mean")
    return torch.nn.functional.normalize(pooled, dim=1).numpy()


@pytest.mark.train
def test_alike_texts_come_near():
    vectors = vectors_of(*trained(TEXTS, SMALL, seed=1, progress=Progress())).reshape(20, 4, -1)
    assert vectors.shape == (20, 4, 32)
    same = np.einsum("ntd,mtd->nmt", vectors, vectors).mean()
    other = np.einsum("ik,jk->ij", vectors[:, 0], vectors[:, 2]).mean()
    assert same > other + 0.1


@pytest.mark.train
def test_one_text_is_enough():
    backbone, tokenizer = trained(["lamp"], SMALL, seed=1, progress=Progress())
    assert np.isfinite(vectors_of(backbone, tokenizer)).all()


@pytest.mark.train
@pytest.mark.slow
def test_what_is_served_is_what_was_trained():
    expected = vectors_of(*trained(TEXTS, SMALL, seed=1, progress=Progress()))
    np.testing.assert_allclose(local(TEXTS, SMALL, seed=1, progress=Progress()).encode(TEXTS), expected, atol=1e-4)


def test_any_text_is_cut_into_known_pieces():
    tokenizer = trained_tokenizer(TEXTS, 320)
    text = "červená lampa 燈 🪔"
    assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text
    assert tokenizer.get_vocab_size() <= 320
    assert len(tokenizer.encode("red lamp").ids) < len("red lamp")


def test_the_same_texts_give_the_same_pieces():
    assert trained_tokenizer(TEXTS, 320).to_str() == trained_tokenizer(TEXTS, 320).to_str()
