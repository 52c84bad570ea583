"""The sub-benchmarks of scripts/benchmark.py, one module each, and the modules that they share.

A sub-benchmark has a NAME, a docstring whose first line says what it measures, and a function `measures(options)` that
returns its `measure.Measure`s; it may have COLUMNS, facts of its ways that get a table of their own. `measure` takes
ways in turns and makes rows of it; `nets` makes the nets that are compared; `children` starts processes; `machine` says
what everything runs on; `report` writes tables and bars.
"""

NAMES = (
    "step", "forward", "busy", "sample", "overheads", "memory", "processes", "first-step", "start", "growth",
)  # fmt: skip
"""The names of the sub-benchmarks; that of a module has an underscore for each hyphen."""

QUALITY = "quality"
"""The name of the sub-benchmark that is no measure of speed, and is run by itself."""
