"""`python -m benchmarks [CASE ...]`: time and peak memory of each case in a process of its own, beside a peer's.

Some cases have a peer of their own. The others have torch where it is there, in MOVIEGEN_TORCH_PYTHON or this interpreter:
it gets the very arrays that our case used, and its loss and gradient norm must agree with ours before its time counts.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import CASES, measure_case

ROOT = Path(__file__).parents[1]
RESULTS = Path("runs/benchmarks/results.json")
PEERS = ("transformer_tiny", "transformer_4x256", "attention_14336", "byt5_small", "tae_tiny", "tae_small", "tae_full")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default all: {', '.join(CASES)}")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)  # the child process of one case
    args = parser.parse_args()
    # A name that is no case's stands for all that begin with it, as "data_pipeline".
    chosen = {name: [name] if name in CASES else [c for c in CASES if c.startswith(f"{name}_")] for name in args.cases}
    unknown = [name for name, cases in chosen.items() if not cases]
    if unknown:
        parser.error(f"no case named {', '.join(unknown)}; there are: {', '.join(CASES)}")
    if args.measure:
        print(json.dumps(measure_case(CASES[args.cases[0]], Path(args.measure))))
        return
    python = torch_python()
    if python is None:
        print("No torch here: set MOVIEGEN_TORCH_PYTHON to a python that has it to see both side by side.")
    rows = []
    for name in itertools.chain(*chosen.values()) if chosen else CASES:
        print(f"{name}: {CASES[name].about} ...", flush=True)
        rows.append(run_case(name, python))
        write_results(rows)
        print("  " + summary(rows[-1]), flush=True)
    print("\n" + table(rows) + f"\n\nwritten to {RESULTS}")


def torch_python() -> str | None:
    if os.environ.get("MOVIEGEN_TORCH_PYTHON"):
        return os.environ["MOVIEGEN_TORCH_PYTHON"]
    return sys.executable if importlib.util.find_spec("torch") else None


def run_case(name: str, python: str | None) -> dict:
    with tempfile.TemporaryDirectory() as exchange:
        row = {"case": name, "load": round(os.getloadavg()[0], 1)}
        row["moviegen"] = child([sys.executable, "-m", "benchmarks", name, "--measure", exchange], exchange)
        if "peer_seconds" in row["moviegen"]:  # in turns with ours, in the same process
            row["peer"] = {"seconds": row["moviegen"]["peer_seconds"], "peak_mb": row["moviegen"]["peak_mb"]}
        elif python and name in PEERS and "error" not in row["moviegen"]:
            row["peer"] = child([python, str(ROOT / "benchmarks" / "torch_peer.py"), name, exchange], exchange)
            row["peer"].update(disagreement(row["moviegen"], row["peer"]))
    return row


def child(command: list[str], folder: str) -> dict:
    """The dict that the command prints as its last line, or {"error": what it complained of}."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {
            "error": next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception)\b", line)), lines[-1])
        }
    return json.loads(done.stdout.strip().splitlines()[-1])


def disagreement(ours: dict, peer: dict, tolerance: float = 1e-4) -> dict:
    for key in ("loss", "gradient_norm"):
        if key in ours and key in peer and abs(ours[key] - peer[key]) > tolerance * abs(peer[key]):
            return {"error": f"{key} is {peer[key]:.6g}, ours {ours[key]:.6g}: not the same computation"}
    return {}


def summary(row: dict) -> str:
    parts = []
    for who in ("moviegen", "peer"):
        r = row.get(who)
        if r and "error" in r:
            parts.append(f"{who}: {r['error']}")
        elif r:
            parts.append(f"{who}: {r['seconds']:.3g} s, peak {r['peak_mb']:.0f} MB")
    return "; ".join(parts)


def table(rows: list[dict]) -> str:
    head = ("case", "seconds", "peer", "ratio", "peak MB", "peer", "first call", "load")
    lines = [head]
    for row in rows:
        ours, peer = row["moviegen"], row.get("peer", {})
        both = "seconds" in ours and "seconds" in peer and "error" not in peer
        lines.append(
            (
                row["case"],
                _number(ours.get("seconds")),
                _number(peer.get("seconds")) if both else "-",
                f"{ours['seconds'] / peer['seconds']:.2f}" if both else "-",
                _number(ours.get("peak_mb")),
                _number(peer.get("peak_mb")) if both else "-",
                _number(ours.get("first_seconds")),
                str(row["load"]),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "failed" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_results(rows: list[dict]) -> None:
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": time.strftime("%Y-%m-%d %H:%M"), "cores": os.cpu_count(), "rows": rows}
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
