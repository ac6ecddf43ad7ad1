"""What a mesh must be for an experiment, and what is allowed and yet costs much; told from the config alone."""

from collections.abc import Collection
from typing import Any

from moviegen.parallel import buckets

LARGE_WASTE = 0.05  # of the work of a sequence: above it a run says what its padding costs


def violations(axes: dict[str, int], ranks: int, config: Any, job: str, wrong: Collection[str] = ()) -> list[str]:
    """Every rule of the mesh that an experiment on so many ranks breaks, each with what would mend it.

    Of keys that are `wrong` by themselves nothing is told.
    """
    found, batches = [], axes["data"] * axes["zero"]
    if batches * axes["sp"] != ranks:
        found.append(
            f"it has {batches * axes['sp']} ranks, but there {'is 1' if ranks == 1 else f'are {ranks}'}: "
            f"change the mesh or start --workers={batches * axes['sp']}"
        )
    if job == "train_tae" and axes["sp"] > 1:
        found.append(f"sp={axes['sp']}: the autoencoder has no sequence to split, use zero or data")
    if job in ("train", "sample") and "model.num_heads" not in wrong and config.model.num_heads % axes["sp"]:
        found.append(
            f"sp={axes['sp']} does not divide model.num_heads = {config.model.num_heads}, and each rank of a sequence "
            "attends with its share of the heads"
        )
    if job in ("train", "train_tae") and "optim.accumulate" not in wrong:
        pieces = batches * config.optim.get("accumulate", 1)
        sizes = {"train.batch_size": config.train.batch_size}
        if job == "train" and buckets.configured(config):
            sizes = {}  # each bucket has its own
        elif job == "train_tae" and config.data.image_fraction:
            sizes["data.image_batch_size"] = config.data.image_batch_size
        found += [
            f"{key} is {size}, not a multiple of {pieces}: data {axes['data']} x zero {axes['zero']} x optim.accumulate"
            for key, size in sizes.items()
            if key not in wrong and size % pieces
        ]
    return found


def communicators(axes: dict[str, int], zero_stage: int, job: str = "train") -> tuple[str, ...]:
    """The groups of a mesh (`mesh.Mesh`) that get a communicator of their own, which holds buffers on each card.

    The others use the one of all ranks, if these are their members, or exchange nothing. That of a sequence is its own
    even so: blocks exchange along it while the weights of the next one are gathered, and one communicator must not be
    used by two streams at once.
    """
    sharded, copies = axes["zero"] * axes["sp"], axes["data"]
    if sharded * copies == 1:
        return ()
    trains, samples = job in ("train", "train_tae", "train_stages"), job not in ("train", "train_tae")
    exchange = trains and zero_stage >= 2 or samples and copies == 2  # halves of the guidance
    opened = {"sequence": axes["sp"] > 1, "shard": zero_stage > 0, "replicas": exchange}
    apart = sharded > 1 and copies > 1  # neither group is all ranks, nor one rank alone
    return ("world", *(kind for kind, used in opened.items() if used and (apart or kind == "sequence")))


def notes(axes: dict[str, int], config: Any, job: str) -> list[str]:
    """What is allowed and yet costs much: a state that nothing shards, sequences that sp does not divide well."""
    found, sharded = [], axes["zero"] * axes["sp"]
    if job in ("train", "train_tae", "sample") and config.train.zero_stage and sharded == 1 and axes["data"] > 1:
        found.append(
            f"train.zero_stage={config.train.zero_stage} shards over zero x sp, which is 1: each of the {axes['data']} ranks "
            f"holds all of the state; --mesh=zero={axes['data']} shares it out"
        )
    for kind, tokens in token_counts(config).items() if job == "train" else ():
        each = -(-tokens // axes["sp"])
        waste = each * axes["sp"] / tokens - 1
        if waste >= LARGE_WASTE:
            found.append(
                f"sp={axes['sp']} does not divide the {tokens} tokens of {kind}: each rank takes {each}, padding "
                f"included, {waste:.0%} more work than there is"
            )
    return found


def kinds(config: Any, unit: int = 1) -> dict[str, buckets.Bucket]:
    """What an experiment trains on, `buckets.table` by kind: "a video", "an image", or several as "a video of NAME"."""
    table = buckets.table(config, unit)
    counts, words = [each.kind for each in table], {"image": "an image", "video": "a video"}
    return {words[each.kind] + (f" of {each.name}" if counts.count(each.kind) > 1 else ""): each for each in table}


def token_counts(config: Any) -> dict[str, int]:
    """Length of the sequences that an experiment trains on, by kind."""
    return {kind: buckets.tokens(each, config) for kind, each in kinds(config).items()}
