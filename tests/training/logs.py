"""What a run logs, without what depends on the machine and its clock."""

from moviegen.storage.writers import read_metrics
from moviegen.training import meters


def lines(workdir):
    left_out = ("time", *meters.MEASURED)
    return [
        {key: value for key, value in line.items() if key.rpartition("/")[2] not in left_out}
        for line in read_metrics(workdir)
    ]
