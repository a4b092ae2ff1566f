"""Builds the site: a Sphinx extension that reads executed chapters, and `build()` around it.

Chapters are sources without outputs. A page run (`minisearch run`) leaves an executed notebook
under `_build/runs`, with the SHA-256 of the source it came from; the reader below looks it up by
that hash, so a page can never show outputs of another text. No match is a warning, and `build()`
turns warnings into errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisearch.chapters import chapter_paths, source_hash
from minisearch.errors import InputError, one_of
from minisearch.profiles import PROFILES
from minisearch.runs import page_cell
from minisearch.storage import atomic_directory, atomic_write, build_dir, project_root
from minisearch.worker import cell_folder

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from sphinx.application import Sphinx

PUBLISHED_BRANCH = "gh-pages"  # where the built site is pushed; Colab opens notebooks from there
_HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS[^\n]*\n?", re.S | re.M)
_MARKER = re.compile(r"^[ \t]*### (BEGIN|END) [A-Z ]+\n?", re.M)
_GENERATED = re.compile(r"^% generated: (\w+)(?: (\w+))?[^\n]*$", re.M)


# --- executed notebooks ---------------------------------------------------------------------


def find_run(source: str, profile: str) -> Path | None:
    """The folder of the page run of exactly this chapter text, or None.

    Its parameters are the chapter's own, since the page shows them as they are.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()
    for chapter in chapter_paths():
        if source_hash(chapter) == digest:
            folder = cell_folder(page_cell(chapter.stem, profile=profile))
            file = folder / "run.json"
            run = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if (run.get("source_sha256"), run.get("mode")) == (digest, "page"):
                return folder
    return None


def page_view(notebook: NotebookNode) -> NotebookNode:
    """The notebook as readers see it: injected parameters hidden, solutions folded.

    nbgrader's marker lines go, hidden tests go with all their lines, and a cell that held
    nothing else goes too.
    """
    kept = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            if "injected-parameters" in tags:
                tags.append("hide-cell")
            if "### BEGIN SOLUTION" in cell.source:
                tags.append("hide-input")
                prompt = {"code_prompt_show": "Show a solution", "code_prompt_hide": "Hide it"}
                cell.metadata["mystnb"] = {**prompt, **cell.metadata.get("mystnb", {})}
            stripped = _MARKER.sub("", _HIDDEN.sub("", cell.source)).rstrip()
            if cell.source.strip() and not stripped:
                continue
            cell.source = stripped
        kept.append(cell)
    notebook.cells = kept
    return notebook


def read_chapter(text: str) -> NotebookNode:
    """Reader for myst-nb's `nb_custom_formats`: a chapter's text to its executed notebook."""
    import nbformat
    from sphinx.util import logging

    profile = os.environ.get("MINISEARCH_BOOK_PROFILE", "toy")
    run = find_run(text, profile)
    if run:
        return page_view(nbformat.read(run / "notebook.ipynb", as_version=4))
    import jupytext

    title = re.search(r"^# # (.+)$", text, re.M)
    logging.getLogger(__name__).warning(
        "no %s page run of this text of %r; run the chapter with that profile first",
        profile,
        title[1] if title else "a chapter without a title",
    )
    return page_view(jupytext.reads(text, fmt="py:percent"))


def _install_cell(repository: str) -> NotebookNode:
    """First cell of a downloaded notebook: fetch the book where its package is missing."""
    from nbformat.v4 import new_code_cell

    folder = repository.rstrip("/").rsplit("/", 1)[-1]
    return new_code_cell(
        "# Does nothing where the book is installed; on Colab it fetches and installs it.\n"
        "from importlib.util import find_spec\n\n"
        'if find_spec("minisearch") is None:\n'
        f"    !git clone -q --depth 1 {repository} {folder} && pip install -q ./{folder}\n"
        f"    !pip install -q --no-deps -r {folder}/requirements-assets.txt\n"
        f"    %cd {folder}",
        metadata={"tags": ["hide-cell"]},
    )


# --- pages written by code ------------------------------------------------------------------


def chapter_table() -> str:
    """The book's plan as Markdown: parts, methods, papers, and a link where a chapter exists."""
    import yaml

    root = project_root()
    plan = yaml.safe_load((root / "book" / "plan.yaml").read_text(encoding="utf-8"))
    lines = ["| Chapter | What it builds | Paper |", "|---|---|---|"]
    for part in plan:
        lines.append(f"| **{part['part']}** | | |")
        for row in part["chapters"]:
            path, title = f"chapters/{row['file']}.py", f"{int(row['file'][:2])} {row['title']}"
            if (root / path).is_file():
                title = f"[{title}](../{path})"
            paper = (
                f"[{row['arxiv']}](https://arxiv.org/abs/{row['arxiv']}) {{cite:p}}`{row['cite']}`"
            )
            lines.append(f"| {title} | {row['builds']} | {paper} |")
    return "\n".join(lines)


def scoreboard() -> str:
    """The verdict of every reproduction card, as Markdown."""
    from minisearch.showing import scoreboard_markdown

    return scoreboard_markdown()


def changes() -> str:
    """What was changed in the registrations of all cards, as Markdown."""
    from minisearch.showing import changes_markdown

    return changes_markdown()


def toy(block: str) -> str:
    """One block of the page on the agent chapters' toy world and models, as Markdown."""
    from minisearch.agents.report import page_blocks

    return page_blocks()[block]()


GENERATED: dict[str, Callable[[], str]] = {
    "chapters": chapter_table,
    "scoreboard": scoreboard,
    "changes": changes,
}


# --- the Sphinx extension -------------------------------------------------------------------


def _generated(match: re.Match[str]) -> str:
    """The text for `% generated: NAME` or `% generated: toy BLOCK`."""
    return toy(match[2]) if match[1] == "toy" else GENERATED[match[1]]()


def _fill_generated(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace each `% generated: NAME` line of a page by what the code says today."""
    if docname.startswith("book/"):
        source[0] = _GENERATED.sub(_generated, source[0])


def _publish_notebook(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Put the executed notebook beside the page's source, where the download button looks."""
    path = Path(app.env.doc2path(pagename)) if doctree else Path()
    if path.suffix != ".py":
        return
    import nbformat

    notebook = read_chapter(path.read_text(encoding="utf-8"))
    repository = app.config.html_theme_options["repository_url"]
    notebook.cells.insert(0, _install_cell(repository))
    target = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
    atomic_write(target, nbformat.writes(notebook, version=4))
    context["ipynb_source"] = f"{pagename}.ipynb"


def _fix_colab(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Colab opens only .ipynb files: point its button at the published notebook."""
    branch = app.config.html_theme_options.get("repository_branch", "main")
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("text") == "Colab":
                url = button["url"].replace(
                    f"/blob/{branch}/", f"/blob/{PUBLISHED_BRANCH}/_sources/"
                )
                button["url"] = re.sub(r"\.py$", ".ipynb", url)


def _drop_thebe(app: Sphinx, config: Any) -> None:
    """Jupyter Book always loads sphinx-thebe, twice, though no page of ours runs a kernel."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if getattr(listener.handler, "__name__", "")
            not in ("init_thebe_core", "update_thebe_context")
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension; named in `_config.yml` under `sphinx: extra_extensions`."""
    app.connect("config-inited", _drop_thebe)
    app.connect("source-read", _fill_generated)
    # The theme draws its buttons at priority 501: the notebook comes before, the repair after.
    app.connect("html-page-context", _publish_notebook, priority=400)
    app.connect("html-page-context", _fix_colab, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


# --- building -------------------------------------------------------------------------------


def build(profile: str, output: Path | None = None, nitpick: bool = True) -> Path:
    """Build the site from the page runs of one profile; warnings are errors.

    Args:
        profile: whose runs to publish: "toy" for the book, "smoke" for tests.
        output: folder of the pages; `_build/html` by default. Replaced only on success.
        nitpick: also complain about every reference that cannot be resolved.

    Raises:
        InputError: for an unknown profile, or with the warnings where the build fails.
    """
    if profile not in PROFILES:
        raise one_of("option --profile", profile, list(PROFILES))
    root, output = project_root(), Path(output or build_dir() / "html")
    build_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build_dir(), prefix=".site-") as scratch:
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
        command += ["build", str(root), "--toc", str(root / "book" / "_toc.yml")]
        command += ["--path-output", scratch, "--all", "-W", "--keep-going"]
        environment = {**os.environ, "MINISEARCH_BOOK_PROFILE": profile}
        environment["MINISEARCH_ROOT"] = str(root)
        done = subprocess.run(
            command + ["-n"] * nitpick, env=environment, text=True, capture_output=True
        )
        atomic_write(build_dir() / "site.log", done.stdout + done.stderr)
        pages = Path(scratch) / "_build" / "html"
        if done.returncode or not pages.is_dir():
            raise _build_error(done.stderr)
        with atomic_directory(output) as folder:
            for entry in pages.iterdir():
                shutil.move(entry, folder / entry.name)
            _without_icon(folder / "index.html")
    return output


def _without_icon(index: Path) -> None:
    """Keep browsers from asking for an icon on the page that only sends on to the first one."""
    text = index.read_text(encoding="utf-8")
    index.write_text(f'<link rel="icon" href="data:," />\n{text}', encoding="utf-8")


def _build_error(log: str) -> InputError:
    """The warnings of a failed build, without Sphinx's traceback."""
    log = re.sub(r"\x1b\[[\d;]*m", "", log)
    bad = [line for line in log.splitlines() if re.search("WARNING|ERROR|Error:", line)]
    return InputError(
        f"the site (full log: {build_dir() / 'site.log'})",
        "; ".join(bad[:8]) or log.strip()[-400:] or "no pages",
        "a build without warnings",
        "correct the pages named, or run the chapters with this profile first.",
    )
