"""Every random stream of the package: its name, and the generator of one of its members.

Members are told apart by whole numbers, such as a step and a sample's index, or by names, of which the crc32 counts: what
is drawn is a pure function of the seed and of them. A stream's number is part of the results: new ones are added at the end.
"""

import enum
import zlib

import numpy as np


class Stream(enum.IntEnum):
    """What a stream is drawn for, and the numbers that tell its members apart."""

    PARAMETER = 0  # path
    NOISE = 1  # noise and time of a training sample: step, position in the global batch
    ORDER = 3  # of the samples in an epoch: epoch
    SAMPLE = 4  # posterior, start and dropped text of a training sample: step, position in the global batch
    VALIDATION_SAMPLE = 5  # index
    VALIDATION_NOISE = 6  # index
    SAMPLING_NOISE = 7  # what a sampled video starts from: index
    CROP = 9  # which clip, and what of it: step, position in the global batch
    TAE_POSTERIOR = 10  # step, position in the global batch
    LINEAR_START = 11  # clips that the autoencoder's linear start is fitted to: index
    LINEAR_CODE = 12  # clips that the linear baseline is fitted to: index
    RENDERED_CLIP = 13  # index, split
    RENDERED_IMAGE = 14  # index, split
    RENDERED_ORDER = 15  # of combinations: epoch, split
    TOY_WORD = 16  # word, encoder
    LOOK = 17  # which entries of a cache are shown: no member; their posteriors: name
    BUCKET = 18  # when a bucket's turns come: name


def rng(stream: Stream, seed: int, *member: int | str) -> np.random.Generator:
    """Returns the generator of one member of a stream; those of two members, or streams, are independent."""
    member = tuple(zlib.crc32(name.encode()) if isinstance(name, str) else name for name in member)
    # Not a list of all numbers as the seed: numpy pads that with zeros, so that [1, 2] and [1, 2, 0] are one.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *member)))
