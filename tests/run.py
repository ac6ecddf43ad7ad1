"""Runs the tests two files at a time, each in a pytest process that ends: python tests/run.py [PYTEST'S OPTIONS] [FILES]

MindSpore keeps what it compiled for the life of a process. Files that compile much get a process each and come first, the
longest before the others; the rest share one with the others of their folder. The last line is the sum of pytest's own.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

TESTS = Path(__file__).resolve().parent
AT_A_TIME = 2  # compiling, which takes most of the time, uses one core
NOTHING_COLLECTED = 5
LONG = (  # longest first
    "training/test_autoencoder.py",
    "experiments/test_run_tiny.py",
    "models/tae/test_step.py",
    "distributed/test_meshes.py",
    "models/transformer/test_step.py",
    "models/transformer/test_model.py",
    "distributed/test_tae_meshes.py",
    "models/tae/test_linear_start.py",
    "models/tae/test_tiles.py",
    "training/test_generator.py",
    "jobs/test_evaluate.py",
    "models/tae/test_model.py",
    "distributed/test_collectives.py",
    "models/test_lpips.py",
    "test_docs.py",
    "benchmarks/test_cases.py",
    "jobs/test_encode_video.py",
    "jobs/test_rehearsal.py",
)


def groups(files: list[Path]) -> list[list[Path]]:
    """Files that share a process, the longest groups first."""
    place = {TESTS / name: number for number, name in enumerate(LONG)}
    found: dict[object, list[Path]] = {}
    for file in sorted(files, key=lambda file: (place.get(file, len(LONG)), file)):
        found.setdefault(file if file in place else file.parent, []).append(file)
    return list(found.values())


def run(files: list[Path], options: list[str]) -> tuple[int, str, float]:
    """Exit code and output of pytest on some files, and the peak memory in GB of its largest process."""
    command = [sys.executable, "-m", "pytest", "-q", *options, *map(str, files)]
    process = subprocess.Popen(
        command, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, output, usage.ru_maxrss / 1e6


def counts(output: str) -> Counter:
    """What pytest's closing line counts; an error is a failure."""
    closing = next((line for line in reversed(output.splitlines()) if re.search(r"\d+ \w+.* in [\d.]+s", line)), "")
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", closing)}
    found["failed"] = found.get("failed", 0) + found.pop("error", 0)
    return Counter(found)


def main(arguments: list[str]) -> int:
    named = [Path(a).resolve() for a in arguments if a.endswith(".py")]
    options = [a for a in arguments if not a.endswith(".py")]
    total, failed, start = Counter(), [], time.monotonic()
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        jobs = {pool.submit(run, group, options): group for group in groups(named or list(TESTS.rglob("test_*.py")))}
        for job in as_completed(jobs):
            names = " ".join(os.path.relpath(file, TESTS.parent) for file in jobs[job])
            code, output, peak = job.result()
            if code == NOTHING_COLLECTED:
                continue
            found = counts(output)
            if code:
                found["failed"] = found["failed"] or 1  # a process that was killed or did not start counts nothing
                failed.append(names)
                print(output)
            total += found
            took = time.monotonic() - start
            print(
                f"[{took:4.0f} s] {found['passed']:4} passed, {found['failed']} failed, {peak:.1f} GB: {names}",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)  # of an interrupt; the terminal sends it to the processes that run as well
    for names in failed:
        print(f"failed: {names}")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return 1 if failed or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
