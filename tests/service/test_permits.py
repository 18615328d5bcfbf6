import pytest

from service import metrics
from service.errors import Overloaded
from service.permits import Permits


def test_full_nobody_waits_and_a_permit_comes_back_whatever_happens():
    permits = Permits(1)
    before = metrics.REGISTRY.get_sample_value("sequitur_shed_total", {"reason": "in_flight"})
    with permits.hold():
        assert metrics.REGISTRY.get_sample_value("sequitur_in_flight") == 1
        with pytest.raises(Overloaded, match="1 requests are at work already"), permits.hold():
            pass
    with pytest.raises(KeyError), permits.hold():
        raise KeyError
    with permits.hold():
        pass
    assert metrics.REGISTRY.get_sample_value("sequitur_in_flight") == 0
    assert metrics.REGISTRY.get_sample_value("sequitur_shed_total", {"reason": "in_flight"}) == before + 1
