from dataclasses import replace

import numpy as np
import pytest
import torch

from models.text.backbone import Backbone, BackboneConfig, pool, turned

SMALL = BackboneConfig(vocabulary=20, d=16, layers=2, heads=4, key_heads=2, head=4, expansion=24, positions=12)
BERT_LIKE = replace(SMALL, key_heads=4, norm="layer", rotary=False, gated=False, biases=True)


def backbone(config: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    return Backbone(config).eval()


def last(model: Backbone, ids: torch.Tensor, mask: torch.Tensor, **options: bool) -> np.ndarray:
    with torch.inference_mode():
        return model(model.embed(ids), mask, **options)[-1].numpy()


@pytest.mark.parametrize("config", [SMALL, BERT_LIKE], ids=["rms", "layer"])
class TestEitherArrangement:
    ids = torch.tensor([[3, 5, 7, 2]])
    ones = torch.ones(1, 4)

    def test_every_state_is_given(self, config: BackboneConfig):
        model = backbone(config)
        states = model(model.embed(self.ids), self.ones)
        assert [tuple(state.shape) for state in states] == [(1, 4, 16)] * 3

    def test_padding_on_either_side_changes_nothing(self, config: BackboneConfig):
        model, alone = backbone(config), last(backbone(config), self.ids, self.ones)
        for pad in ((0, 3), (3, 0)):
            ids = torch.nn.functional.pad(self.ids, pad, value=9)
            mask = torch.nn.functional.pad(self.ones, pad)
            np.testing.assert_allclose(last(model, ids, mask)[mask.bool().numpy()], alone[0], atol=1e-5)

    def test_a_text_without_any_token_is_still_a_number(self, config: BackboneConfig):
        assert np.isfinite(last(backbone(config), self.ids, 0 * self.ones)).all()

    def test_causal_states_do_not_see_what_follows(self, config: BackboneConfig):
        model, other = backbone(config), torch.tensor([[3, 5, 8, 1]])
        before, after = (last(model, ids, self.ones, causal=True) for ids in (self.ids, other))
        assert (before[0, :2] == after[0, :2]).all()
        assert np.abs(last(model, self.ids, self.ones) - last(model, other, self.ones))[0, :2].max() > 1e-4

    def test_order_matters(self, config: BackboneConfig):
        model = backbone(config)
        means = [last(model, ids, self.ones).mean(axis=1) for ids in (self.ids, self.ids.flip(1))]
        assert np.abs(means[0] - means[1]).max() > 1e-5

    def test_one_block_alone_is_a_step_of_the_whole(self, config: BackboneConfig):
        model = backbone(config)
        with torch.inference_mode():
            states = model(model.embed(self.ids), self.ones)
            np.testing.assert_allclose(model.layer(0, states[0], self.ones), states[1], atol=1e-6)

    def test_its_linear_maps_can_be_named_and_words_scored(self, config: BackboneConfig):
        model = backbone(config)
        names = model.linear_modules()
        assert all(isinstance(model.get_submodule(name), torch.nn.Linear) for name in names)
        assert len(names) == 2 * (7 if config.gated else 6)
        assert model.lm_logits(torch.zeros(1, 4, 16)).shape == (1, 4, 20)


def test_rotary_products_depend_on_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    products = [
        (turned(query, torch.tensor([[a]]), 100.0) * turned(key, torch.tensor([[b]]), 100.0)).sum().item()
        for a, b in ((5, 2), (9, 6), (9, 2))
    ]
    assert abs(products[0] - products[1]) < 1e-5
    assert abs(products[0] - products[2]) > 1e-3


def test_pooling_reads_real_tokens_only():
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    mask = torch.tensor([[0, 1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[3.0, 4.0]]
    assert pool(hidden, mask, "cls").tolist() == [[2.0, 3.0]]
    assert pool(hidden, mask, "last").tolist() == [[4.0, 5.0]]
