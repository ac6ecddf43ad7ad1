import resource

import numpy as np
import pytest

from experiments import common
from moviegen.models.costs import work
from moviegen.nn import backend
from moviegen.parallel import buckets
from moviegen.training import meters, optim
from moviegen.training.meters import Load, Meter


def test_losses_by_time_are_means_over_all_ranks_and_micro_batches():
    """Eight samples as two batches of two micro-batches of two, each on the two ranks of a sequence, which share a sample."""
    rng = np.random.default_rng(0)
    losses, t = rng.random(8).astype(np.float32), np.float32([0, 0.05, 0.15, 0.95, 0.1, 0.99, 1.0, 0.55])
    messages = []
    for rows in np.split(np.arange(8), 4):
        share = rng.random(2)
        for part in (share, 1 - share):  # of each sample's loss
            terms = backend.tensor((losses[rows] * part / (2 * 2)).astype(np.float32))
            messages.append(optim.means(list(meters.by_time(terms, t[rows], 2, 2).values())))
    sums, counts = np.mean(messages, 0)
    found = {
        k: total / count for k, (total, count) in meters.time_parts(dict(time_sums=sums, time_counts=counts)).items()
    }
    bins = {"0.0-0.1": [0, 1], "0.1-0.2": [2, 4], "0.5-0.6": [7], "0.9-1.0": [3, 5, 6]}  # nothing is said of the others
    assert found == pytest.approx({f"loss/t{key}": losses[of].mean() for key, of in bins.items()}, rel=1e-5)


def test_a_meter_sums_up_steps_until_it_is_read():
    meter = Meter(2, peak=3.0)
    meter.add(1.0, 0.25, Load(4, 100, 6e12), {"loss/a": (1.0, 1.0)})
    meter.add(3.0, 0.25, Load(8, 200, 6e12), {"loss/a": (4.0, 1.0), "loss/b": (3.0, 2.0)})
    found = meter.read()
    memory = found.pop("memory_gb")
    assert memory == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, rel=0.01)
    rates = dict(samples_per_second=3.0, tokens_per_second=75.0, tflops_per_second=3.0, utilisation=0.5)
    assert (
        found
        == {"loss/a": 2.5, "loss/b": 1.5, "step_seconds": 2.0, "data_wait": 0.25, "data_wait_share": 0.125} | rates
    )
    words = meters.words(found | {"memory_gb": 1.5})
    assert words == ["3 samples/s", "75 tokens/s", "3 TFLOP/s (50%)", "waits 12%", "1.5 GB"]
    meter.add(2.0, 0.0, Load(4), {})
    assert meter.read().keys() == {"step_seconds", "samples_per_second", "data_wait", "data_wait_share", "memory_gb"}


@pytest.mark.parametrize("shapes", [False, True])
def test_the_load_of_a_bucket_is_that_of_all_ranks(shapes):
    config = common.stage("1b", 2, in_buckets=shapes)
    config.data.buckets.batch_sizes = ("1x.*=24",) if shapes else ()
    table = buckets.table(config)
    for bucket in (table[0], table[-1]):
        found = meters.load(config, bucket)
        tokens = buckets.tokens(bucket, config)
        assert found[:2] == (bucket.batch_size, bucket.batch_size * tokens)
        # Six operations for each weight of a block and token, and attention, which is small beside them for an image.
        blocks = 6 * found.tokens * (work.weights(config.model).values - 1024 * 6144)
        assert found.flop > 0.7 * blocks
    whole = work.training(common.stage("1b", 2), dict(data=2, zero=2, sp=1), once=True)["an image"].flop
    if not shapes:
        assert found.flop == pytest.approx(4 * whole, rel=0.01)


@pytest.mark.parametrize(("number", "told"), [(0.01234, "0.0123"), (123.4, "123"), (12345, "12.3k"), (1.5e7, "15M")])
def test_short_numbers(number, told):
    assert meters.short(number) == told
