import math

import pytest

from moviegen.models.costs import memory, work


@pytest.fixture
def state_alone(monkeypatch):
    """A memory of 16 bytes for each weight and nothing else, shared out from stage 3 on, 8 of them in the host if offloaded."""

    def of(config, job, axes, card):
        weights = work.weights(config.model).values
        each = weights / (math.prod((axes["zero"], axes["sp"])) if config.train.zero_stage == 3 else 1)
        kept = {"moments": round(8 * each)}
        if config.train.get("offload_optimizer"):
            return memory.Memory({"weights": round(8 * each)}, kept)
        return memory.Memory({"weights": round(8 * each)} | kept, {})

    monkeypatch.setattr(memory, "of", of)
