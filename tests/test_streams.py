import itertools

import numpy as np
import pytest

from moviegen.streams import Stream, rng


def test_no_two_members_of_any_streams_are_equal():
    """With small numbers and zeros, short keys and long, which numpy's own lists of seeds would take for one another."""
    members = [key for length in range(4) for key in itertools.product((0, 1, 7, 2**32 - 1), repeat=length)]
    drawn = {}
    for stream, seed, member in itertools.product(Stream, (0, 1, 42), members):
        first = tuple(rng(stream, seed, *member).integers(0, 2**63, 2))
        assert first not in drawn, f"{stream!r} {seed} {member} is {drawn[first]}"
        drawn[first] = (stream, seed, member)
    assert len(drawn) == len(Stream) * 3 * len(members)


def test_a_member_is_the_same_every_time():
    draws = [rng(Stream.NOISE, 3, 4, 5).standard_normal(8) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_streams_keep_their_numbers():
    """They are part of every result: a stream that is taken out leaves its number unused."""
    unused = {2, 8}  # whether a step trains on images, of generator and autoencoder: not by chance any more
    assert [stream.value for stream in Stream] == sorted(set(range(len(Stream) + len(unused))) - unused)


@pytest.mark.parametrize("seed", [-1, 1.5])
def test_a_seed_is_a_whole_number_of_at_least_0(seed):
    with pytest.raises((ValueError, TypeError)):
        rng(Stream.NOISE, seed)
