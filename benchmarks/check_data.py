"""`python -m benchmarks.check_data [ROWS]`: time and peak memory of `--job=check_data` on a made-up table of a million rows.

Its files are not there: what would be read of their headers is made up, so that the table's own part is measured. The second
time everything is known from the csv of metadata.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import common
from moviegen.data import doctor, metadata
from moviegen.data.fit import Metadata
from moviegen.data.pieces import Piece

SIZES = ((720, 1280), (1280, 720), (480, 640), (1080, 1080))
CAPTION = " ".join(["a person walks along the river while the camera moves slowly to the left"] * 6)  # paper: 100 words


class MadeUp(metadata.Table):
    """Files that are all there: each is what its name's number says."""

    def row(self, name: str, path: Path, piece: Piece | None = None) -> tuple[metadata.Row, bool]:
        if known := metadata.parsed(self.cells.get(name, "")):
            return known, True
        i = int(Path(name).stem)
        frames = 60 + i % 400
        return metadata.Row(i, i, Metadata(frames, 24.0, *SIZES[i % 4], frames / 24)), False


def main(rows: int = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds, taken in measured(rows, Path(folder)):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(f"{name}: {rows} rows, {taken} taken, {seconds:.0f} s, peak {peak / 1e9:.2f} GB", flush=True)


def measured(rows: int, folder: Path) -> Iterator[tuple[str, float, int]]:
    """Yields what was measured, its seconds, and how many rows were taken."""
    config = common.stage("1b", 2, in_buckets=True)
    config.data.update(csv=str(folder / "table.csv"), video_folder=str(folder))
    with open(config.data.csv, "w", encoding="utf-8") as table:
        table.write("video,caption\n")
        table.writelines(f"{i % 1000:03d}/{i}.mp4,{i} {CAPTION}\n" for i in range(rows))
    for name in ("headers made up", "headers known"):
        begun = time.monotonic()
        checks = doctor.open_checks(config, MadeUp(str(folder / "metadata.csv")))
        found = doctor.survey(checks, config.data.csv, lambda *row: None)
        doctor.same_content(checks, found, None)
        yield name, time.monotonic() - begun, found.taken


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
