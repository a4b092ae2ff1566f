"""What a chapter writes down while it runs: metrics, rows, figures, checks and time spent.

A run folder then holds::

    metrics.json           {"dense_shared/recall@50": 0.61, "bm25/recall@50/head": 0.4, ...}
    checks.json            {"no item twice in a list": {"passed": true, "detail": ""}, ...}
    phases.json            {"arm dense_shared": {"wall_seconds": 41.2, "cpu_seconds": 40.9}, ...}
    rows/<arm>.parquet     one row a request
    figures/<name>.png, <name>.svg, captions.json
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisearch.storage import atomic_write, build_dir, writing

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


class Recorder:
    """Writes into one run folder; every file is whole after every call.

    Args:
        folder: the run folder, made if absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._tables: dict[str, dict[str, Any]] = {"metrics": {}, "checks": {}, "phases": {}}
        self._captions: dict[str, str] = {}
        for name in self._tables:
            self._save(name)

    @classmethod
    def from_environment(cls) -> Recorder:
        """The recorder of the run in progress; in a plain Jupyter session, of a new folder.

        The runner names its folder in `MINISEARCH_RUN_DIR`; without one, a fresh folder is made
        under `_build/interactive`.
        """
        chosen = os.environ.get("MINISEARCH_RUN_DIR")
        if chosen:
            return cls(Path(chosen))
        parent = build_dir() / "interactive"
        with writing(parent):
            parent.mkdir(parents=True, exist_ok=True)
            return cls(Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent)))

    @property
    def metrics(self) -> dict[str, float | None]:
        """What was recorded so far, by name."""
        return dict(self._tables["metrics"])

    def metric(self, name: str, value: float) -> None:
        """Record one number under a flat name, `arm/metric` or `arm/metric/bucket`.

        A value that is not finite (the mean of an empty bucket) is no number and is left out.
        """
        if math.isfinite(value):
            self._tables["metrics"][name] = float(value)
            self._save("metrics")

    def check(self, name: str, condition: bool, detail: str = "") -> None:
        """Record an invariant of the chapter.

        Raises:
            AssertionError: if it does not hold; it is recorded all the same.
        """
        passed = bool(condition)
        self._tables["checks"][name] = {"passed": passed, "detail": detail}
        self._save("checks")
        if not passed:
            raise AssertionError(f"{name}: {detail}" if detail else name)

    def rows(self, arm: str, columns: Mapping[str, np.ndarray]) -> Path:
        """Write one row a request (or step) for an arm, to `rows/<arm>.parquet`.

        Shape: every column (n,). Doubles are stored in single precision, the rest as it is.

        Raises:
            ValueError: where the columns differ in length.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = {}
        for name, values in columns.items():
            array = pa.array(values)
            arrays[name] = array.cast(pa.float32()) if pa.types.is_float64(array.type) else array
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"rows of {arm!r} differ in length: {lengths}")
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(arrays), sink, compression="zstd")
        path = self.folder / "rows" / f"{arm}.parquet"
        atomic_write(path, sink.getvalue().to_pybytes())
        return path

    def figure(self, figure: Figure, name: str, caption: str) -> None:
        """Save a figure as PNG and SVG under `figures/`, and its caption in `captions.json`.

        The same figure gives the same bytes: no date, and SVG ids from the name.
        """
        import io

        import matplotlib

        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {}
            with matplotlib.rc_context({"svg.hashsalt": name}):
                figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", metadata=metadata)
            atomic_write(self.folder / "figures" / f"{name}.{kind}", buffer.getvalue())
        self._captions[name] = caption
        text = json.dumps(self._captions, indent=1, ensure_ascii=False)
        atomic_write(self.folder / "figures" / "captions.json", text)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall and CPU seconds (all threads, and child processes that ended) of a block."""
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        try:
            yield
        finally:
            spent = self._tables["phases"].setdefault(name, {"wall_seconds": 0, "cpu_seconds": 0})
            spent["wall_seconds"] = round(spent["wall_seconds"] + time.perf_counter() - wall, 3)
            spent["cpu_seconds"] = round(spent["cpu_seconds"] + sum(os.times()[:4]) - cpu, 3)
            self._save("phases")

    def _save(self, name: str) -> None:
        text = json.dumps(self._tables[name], indent=1, ensure_ascii=False)
        atomic_write(self.folder / f"{name}.json", text)
