"""One sub-benchmark in this process: `python -m benchmarks NAME ROWS OPTIONS`, which scripts/benchmark.py starts.

ROWS is a file that gets lines of JSON as they come: first the measures and ways that are planned, then a row each.
OPTIONS is JSON of `measure.Options`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Options


def main() -> None:
    """Measure, and write rows."""
    name, path, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    options = Options(**given | {"work": Path(given["work"])})
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    assert name == module.NAME
    with path.open("w", encoding="utf-8") as file:

        def write(content: dict[str, Any]) -> None:
            file.write(json.dumps(content) + "\n")
            file.flush()

        measures = module.measures(options)
        planned = [[one.name, way] for one in measures for way in one.ways]
        write({"about": module.__doc__, "planned": planned, "columns": list(getattr(module, "COLUMNS", ()))})
        for one in measures:
            for row in one.rows(options.seconds / len(measures), options.tiny):
                write(row)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
