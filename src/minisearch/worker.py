"""The process that executes one cell's notebook: `python -m minisearch.worker`, started by `runs`.

It reads a job, one JSON line, from standard input and answers with one JSON line. It lives as long
as its standard input stays open, so that it and its kernel end with the process that started them,
even when that one is killed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minisearch.cells import Cell, code_key
from minisearch.chapters import find, source_hash, to_notebook
from minisearch.doctor import commit, cpu_model, versions
from minisearch.errors import InputError
from minisearch.profiles import Settings
from minisearch.storage import atomic_directory, project_root, run_dir

# jsonschema tries this module, for a check that no notebook needs; its import compiles a grammar,
# which takes longer than all else that happens before a kernel starts. None makes it absent.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Failure:
    """Where a run stopped: the notebook's cell, its first line, the error, what is left of it."""

    cell: str
    line: str
    error: str
    notebook: str


def cell_folder(cell: Cell) -> Path:
    """Where the run of a cell is, once it is complete."""
    return run_dir(cell.chapter, cell.profile, cell.folder_name)


def main() -> None:
    """Run the job on standard input; answer with one JSON line."""
    job = json.loads(sys.stdin.readline())
    cell = Cell.from_dict(job["cell"])
    answer: dict[str, Any] = {"status": "ran"}
    with tempfile.TemporaryDirectory(prefix="minisearch-", ignore_cleanup_errors=True) as private:
        threading.Thread(target=_follow_parent, args=(private,), daemon=True).start()
        try:
            _run(cell, job, private)
        except InputError as error:
            answer = {"status": "refused", "error": error.args}
        except _Stopped as stopped:
            answer = {"status": "failed", "failure": asdict(stopped.failure)}
    print(json.dumps(answer), flush=True)


def _follow_parent(private: str) -> None:
    """Wait for the parent to close the pipe or to die; then take the kernel along."""
    sys.stdin.read()
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    shutil.rmtree(private, ignore_errors=True)
    os._exit(1)


class _Stopped(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error)
        self.failure = failure


def _run(cell: Cell, job: dict[str, Any], private: str) -> None:
    """Execute a cell's notebook into its folder, or into `<folder>.failed`."""
    import papermill  # noqa: F401  (here, so that its seconds are no part of the run's)

    final = cell_folder(cell)
    failed = final.with_name(f"{final.name}.failed")
    with atomic_directory(final) as folder:
        description = _describe(cell, job)
        started = time.perf_counter()
        try:
            _execute(cell, job, folder, private)
        except Exception as error:
            if isinstance(error, OSError | InputError):
                raise
            shutil.rmtree(failed, ignore_errors=True)
            os.replace(folder, failed)
            raise _Stopped(_failure(error, failed / "notebook.ipynb")) from error
        description["wall_seconds"] = round(time.perf_counter() - started, 3)
        description |= _usage()
        phases = folder / "phases.json"
        description["phases"] = json.loads(phases.read_text()) if phases.is_file() else {}
        text = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / "run.json").write_text(text, encoding="utf-8")
    shutil.rmtree(failed, ignore_errors=True)


def kernel_environment(profile: str, private: str) -> dict[str, str]:
    """A kernel's environment: the profile's threads, fixed hashes, no chatter, no network at toy.

    `private` takes what IPython keeps, so that a user's own start-up files do not run.
    """
    environment = {
        "IPYTHONDIR": private,
        "OMP_NUM_THREADS": str(Settings.of(profile).threads),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment | ({"HF_HUB_OFFLINE": "1"} if profile in ("smoke", "toy") else {})


def _execute(cell: Cell, job: dict[str, Any], folder: Path, private: str) -> None:
    import papermill
    from traitlets.config import Config

    os.environ.update(kernel_environment(cell.profile, private), MINISEARCH_RUN_DIR=str(folder))
    tempfile.tempdir = private  # Jupyter's connection file goes there, and with it when killed
    # Sockets in a folder of its own: no open ports. The system allows about 100 characters.
    local = os.name == "posix" and len(private) < 80
    manager = {"transport": "ipc", "ip": f"{private}/kernel"} if local else {}
    look = "{desc}: cell {n_fmt}/{total_fmt} {bar} {elapsed}, {remaining} left"
    # "disable" is for TQDM_DISABLE, which is meant for the chapters' own bars.
    bar = {"desc": cell.chapter, "bar_format": look, "disable": False}
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            papermill.execute_notebook(
                to_notebook(cell.chapter, job["mode"], job["parameters"]),
                folder / "notebook.ipynb",
                cwd=project_root(),
                progress_bar=bar if job["progress"] else False,
                stdout_file=log,
                stderr_file=log,
                extra_arguments=["--IPKernelApp.log_level=50"],  # or each shutdown logs an error
                iopub_timeout=60,  # the default of 4 s is short on a busy machine
                config=Config({"KernelManager": manager}),
            )
        except Exception as error:
            log.write(str(error))
            raise


def _failure(error: Exception, notebook: Path) -> Failure:
    """What to tell about a notebook that stopped; a dead kernel does not name its cell."""
    number, source = getattr(error, "exec_count", None), getattr(error, "source", "")
    if number is None and notebook.is_file():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells = [cell for cell in cells if cell["cell_type"] == "code"]
        begun = [c for c in cells if c["metadata"].get("papermill", {}).get("start_time")]
        if begun:
            number, source = len(begun), "".join(begun[-1]["source"])
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    return Failure(
        cell=f"In [{number}]" if number else "-",
        line=lines[0] if lines else "-",
        error=f"{kind}: {text}",
        notebook=str(notebook) if notebook.is_file() else "",
    )


def _usage() -> dict[str, float | None]:
    """CPU seconds and peak memory of the kernel, the worker's only child (not on Windows)."""
    if sys.platform == "win32":
        return {"cpu_seconds": None, "peak_memory_mb": None}
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    seconds = round(used.ru_utime + used.ru_stime, 3)
    return {"cpu_seconds": seconds, "peak_memory_mb": round(used.ru_maxrss / unit, 1)}


def _describe(cell: Cell, job: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says before the run: what it is, of which code, where and when."""
    path = find(cell.chapter)
    return {
        "cell": cell.to_dict(),
        "chapter": cell.chapter,
        "mode": job["mode"],
        "parameters": job["parameters"],
        "command": job["command"],
        "code_key": code_key(path),
        "source_sha256": source_hash(path),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "threads": Settings.of(cell.profile).threads,
        "python": platform.python_version(),
        "versions": versions(),
        **commit(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform()},
    }


if __name__ == "__main__":
    main()
