"""Which part of a sampling run each rank of a mesh does: batches of requests, guidance, decoding."""

from collections.abc import Iterator
from typing import NamedTuple

from moviegen.parallel.mesh import ALONE, Group, Mesh


class Assignment(NamedTuple):
    """What this rank does.

    Ranks that end up with the same latents are a team. Teams share out the batches of requests, the decoders of a team
    share out the videos of a batch, and the ranks of `tile_group`, which are one decoder, the tiles of a video.
    """

    mesh: Mesh
    team: int
    teams: int
    branch: int | None  # of guidance: 0 = with the prompts, 1 = with the empty one, None = both
    decoder: int
    decoders: int
    tile_group: Group

    def batches(self, requests: int, size: int) -> Iterator[tuple[list[int], range]]:
        """Yields each batch of this rank's team: numbers of the requests, and the places in it that this rank decodes.

        Every batch is full and every team has equally many, filled up with the last request: another size would be
        compiled anew, and where weights are gathered all ranks must take part.
        """
        size = max(1, min(size, -(-requests // self.teams)))
        for start in range(self.team * size, requests + self.team * size, size * self.teams):
            batch = [min(number, requests - 1) for number in range(start, start + size)]
            real = min(size, max(0, requests - start))
            yield batch, range(self.decoder, real, self.decoders)


def assign(mesh: Mesh, guided: bool, tiles: int = 1) -> Assignment:
    """Returns this rank's part, given whether guidance is used and how many tiles a video is decoded in."""
    batch, sequence = mesh.batch, mesh.sequence
    team, teams, branch, decoder, decoders = batch.rank, batch.size, None, 0, 1
    if guided and mesh.data == 2:  # each half of the mesh computes one branch
        branch, team = divmod(batch.rank, mesh.zero)
        teams, decoder, decoders = mesh.zero, branch, 2
    if tiles < sequence.size:  # too few for every rank of the sequence: each decodes whole videos
        decoder, decoders = decoder * sequence.size + sequence.rank, decoders * sequence.size
        sequence = ALONE
    return Assignment(mesh, team, teams, branch, decoder, decoders, sequence)
