"""For all tests."""

import signal
import sys

import pytest


def pytest_configure():
    """What is started in the background ignores SIGINT, and so would all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def card(monkeypatch):
    """A stand-in for a card: what an array is made into is in host memory until `Tensor.to` moves it. Returns what was moved.

    A compiled function refuses to be given a tensor that is still in host memory.
    """
    import mindspore as ms

    from moviegen.nn import backend, layerwise

    moved, hosted = [], {}
    made, flat = ms.Tensor.__init__, layerwise._flat

    def __init__(self, *args, **kwargs):
        made(self, *args, **kwargs)
        hosted[id(self)] = self

    def to(self, place):
        assert place == "Card" and hosted.pop(id(self)) is self
        moved.append(self)
        return self

    def checked(params, inputs):
        paths, args = flat(params, inputs)
        for path, x in zip([*paths, *range(len(inputs))], args, strict=True):
            assert id(x) not in hosted, f"{path} is in host memory"
        return paths, args

    monkeypatch.setattr(backend, "device", lambda: "Card")
    monkeypatch.setattr(ms.Tensor, "__init__", __init__)
    monkeypatch.setattr(ms.Tensor, "to", to)
    monkeypatch.setattr(layerwise, "_flat", checked)
    return moved


@pytest.fixture
def ascend_forms(monkeypatch):
    """Every operation is compiled in its form for Ascend; what is compiled already is let go, before and after."""
    from moviegen.nn import kernels

    _forget_compiled()
    monkeypatch.setattr(kernels, "ON_ASCEND", True)
    yield
    _forget_compiled()


def _forget_compiled():
    rooms = ("moviegen.nn.", "moviegen.models.", "moviegen.parallel.collectives")
    for name, module in list(sys.modules.items()):
        if name.startswith(rooms) and name != "moviegen.nn.backend":
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
