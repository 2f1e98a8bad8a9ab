"""How fast records are read: 10,000 of every shape, and files of your own.

    OMP_NUM_THREADS=1 python benchmarks/datasets.py [counterfact-edit.json ...]

The 10,000 are the invented records of the tests, over and over; one thread, CPU seconds, medians of 3. "json" is the strict JSON
parser alone, "read" all of `read_dataset`: file, digest, JSON, shapes, checks of every text.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Report, quiet

from kedit_hub import strictjson
from kedit_hub.errors import EditError
from kedit_hub.hub.datasets import Loaded, read_dataset
from kedit_hub.records.shapes import SHAPES, read_all, shape_of

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures" / "records"
COUNT, REPEATS = 10_000, 3
LIMIT_S = 2.0  # for 10,000 records of CounterFact


def cpu(call: Callable[[], Any]) -> float:
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def invented() -> dict[str, list[Any]]:
    """Readable records by shape, from the fixtures; Sanitation's files are no lists and are left to the tests."""
    found: dict[str, list[Any]] = {}
    for path in sorted(FIXTURES.glob("*.json*")):
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            records = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        else:
            records = json.loads(text)
        for record in records if isinstance(records, list) else []:
            try:
                shape = shape_of(record)
                read_all(record, shape)
            except EditError:
                continue
            found.setdefault(shape, []).append(record)
    return found


def row(name: str, path: Path) -> list[Any]:
    loaded: Loaded = read_dataset(path, rejected="collect")
    data = path.read_bytes()
    parse = cpu(lambda: strictjson.loads(data, what=name, max_bytes=1 << 28))
    read = cpu(lambda: read_dataset(path, rejected="collect"))
    counts = [loaded.total, len(loaded.edits), len(loaded.rejected), f"{len(data) / 1e6:.1f}"]
    return [name, *counts, parse, read, f"{loaded.total / read:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path, help="files of records, .json")
    arguments = parser.parse_args()
    quiet()
    report = Report("datasets", "Reading records")
    columns = ["shape or file", "records", "edits", "rejected", "MB", "json s", "read s", "records/s"]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for shape, records in invented().items():
            path = Path(folder) / f"{shape}.json"
            path.write_text(json.dumps((records * COUNT)[:COUNT], ensure_ascii=False), encoding="utf-8")
            rows.append(row(shape, path))
    report.say(f"\n{COUNT:,} invented records of {len(rows)} of the {len(SHAPES)} shapes, CPU seconds on one thread:")
    report.table(columns, rows)
    [counterfact] = [one for one in rows if one[0] == "counterfact"]
    verdict = "under" if counterfact[6] < LIMIT_S else "OVER"
    report.say(f"{COUNT:,} records of CounterFact take {counterfact[6]:.2f} s: {verdict} the limit of {LIMIT_S:.0f} s.")
    if arguments.files:
        report.say("\nPublic files, as far as they were at hand:")
        report.table(columns, [row(path.name, path) for path in arguments.files])
    report.save()


if __name__ == "__main__":
    main()
