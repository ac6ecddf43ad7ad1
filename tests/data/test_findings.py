from pathlib import Path

import pytest

from experiments import common
from moviegen.data import files, findings
from moviegen.data.findings import Sample, Survey
from moviegen.data.fit import Fit, Metadata
from moviegen.parallel import buckets
from moviegen.parallel.buckets import Bucket

BUCKET = Bucket(32, 64, 64, (16.0,), batch_size=8)


def sample(name, rows=0.0, seconds=0.0, scale=1.0):
    own = Fit(BUCKET, 16.0, 0, scale, rows, 0.0, seconds)
    return Sample(0, files.File(name, Path("videos")), "", Metadata(100, 25.0, 64, 64, 4.0), own, BUCKET)


def test_the_worst_rows_are_those_that_lose_most_of_what_they_have():
    found = Survey()
    for i, each in enumerate(
        [sample("half", rows=0.5), sample("whole"), sample("long", seconds=3.0), sample("small", scale=1.25)] * 3
        + [sample(f"tenth{i}", rows=0.1) for i in range(20)]
    ):
        found.take(each, 0, i)
    worst = findings.report(common.stage("1b", 2), [BUCKET], {}, found)["worst"]
    told = ["75% of its seconds are cut away", "50% of its picture is cut away"]
    told += ["36% of its pixels are made up by enlarging it", "10% of its picture is cut away"]
    assert [each["why"] for each in worst] == [
        words for words, n in zip(told, (3, 3, 3, 1), strict=True) for _ in range(n)
    ]


@pytest.mark.parametrize(("rows", "words"), [(0, ""), (8, ""), (7, "1 more row, or "), (3, "5 more rows, or ")])
def test_what_mends_a_bucket_that_fills_no_batch(rows, words):
    config = common.stage("1b", 2)
    assert findings.mend(config, BUCKET, rows) == (words and f"{words}train.batch_size={rows}")
    config = common.stage("1b", 2, in_buckets=True)
    assert findings.mend(config, BUCKET._replace(weight=0.0), rows) == ""
    mended = findings.mend(config, BUCKET, rows)
    assert mended.startswith(words) and bool(words) == (f"data.buckets.weights=('{BUCKET.name}=0',)" in mended)
    if words:
        name = buckets.table(config)[0].name
        config.data.buckets.batch_sizes = (f"{name}={rows}",)
        assert buckets.table(config)[0].batch_size == rows
