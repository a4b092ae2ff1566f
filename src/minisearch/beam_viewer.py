"""Beams of constrained generation as a figure to explore: no kernel, no network, no library.

All that can be shown stands in the HTML; a little script shows one view of it at a time. Without
the script the first view stays, and without `book/_static/custom.css` a tree is a nested list.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from minisearch.errors import InputError, one_of

SHOWN = 8  # beams of a tree and products of a list that are drawn
STATES = {"before": "before the edit", "after": "after the edit"}
EMPTY = "–"
STAR = '<span class="ms-beam-star" role="img" aria-label="{}">★</span> '
LEGEND = (
    "Columns are the positions of an identifier. The fuller a box and the thicker its line, the "
    "larger the prefix's share of the probability of the beams shown, written in per cent "
    f"where they part; {EMPTY} is an empty position, <b>bold</b> is as in the query's own "
    "identifier, and ★ is a new word on a reserved code, or a product bound to it."
)
# A figure that a second run of the script finds live is left alone: a page may hold several.
SCRIPT = """
for (const figure of document.querySelectorAll(".ms-beam:not(.ms-beam-live)")) {
  figure.classList.add("ms-beam-live");
  const all = (name) => [...figure.querySelectorAll(".ms-beam-" + name)];
  const [views, asks, states] = ["view", "ask", "state"].map(all);
  const [controls, status, none] = ["controls", "status", "none"].map((name) => all(name)[0]);
  const search = figure.querySelector("input");
  let { query, state } = views[0].dataset;
  const view = (wanted) =>
    views.find((v) => v.dataset.query === query && (!wanted || v.dataset.state === wanted));
  const show = () => {
    const now = view(state) || view();
    views.forEach((v) => { v.hidden = v !== now; });
    asks.forEach((b) => b.setAttribute("aria-pressed", b.dataset.query === query));
    states.forEach((b) => {
      b.setAttribute("aria-pressed", b.dataset.state === now.dataset.state);
      b.disabled = !view(b.dataset.state);
    });
    status.textContent = now.dataset.say;
  };
  const choose = (button) => { query = button.dataset.query; show(); };
  const filter = () => {
    const clean = (text) => text.toLowerCase().split(/\\s+/).filter(Boolean).join(" ");
    const typed = clean(search.value);
    const has = (b) => typed.split(" ").every((word) => clean(b.textContent).includes(word));
    asks.forEach((b) => { b.hidden = !has(b); });
    const left = asks.filter(has);
    const same = left.find((b) => clean(b.textContent) === typed);
    none.hidden = left.length > 0;
    return [left, same || (left.length === 1 ? left[0] : null)];
  };
  search.addEventListener("input", () => { const only = filter()[1]; if (only) choose(only); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; filter(); }
    if (event.key !== "Enter") return;
    event.preventDefault();
    const [left, only] = filter();
    if (left.length) choose(only || left[0]);
  });
  asks.forEach((b) => b.addEventListener("click", () => choose(b)));
  states.forEach((b) => b.addEventListener("click", () => { state = b.dataset.state; show(); }));
  controls.hidden = false;
  show();
}
"""


@dataclass(frozen=True)
class BeamView:
    """One query in one state of the index.

    Shape: L words in `asked` and in each of `paths`; a score a path; a mark a product.
    """

    query: str
    state: str  # "before" or "after"
    asked: list[str]  # the query's own identifier: the word of each position, "" for empty
    paths: list[list[str]]  # up to 8 beams, best first: the word of each position, "" for empty
    scores: list[float]  # natural log-probability of each beam
    products: list[str]  # titles, best first
    marked: list[bool]  # the product is bound to the new word
    reserved: list[str] = field(default_factory=list)  # words that stand on reserved codes


def beams_html(views: Sequence[BeamView], positions: Sequence[str], title: str) -> str:
    """A figure in which a reader picks a query and a state, and sees identifier, tree, products.

    The first view is shown at first. Of a view the first 8 beams and products are drawn; shares
    are those among these beams.

    Shape: views of L = len(positions) words an identifier -> HTML with a `figure`.

    Raises:
        InputError: without views or positions, for a view that does not fit its form, or for two
            views of the same query and state.
    """
    if not views or not positions:
        found = f"{len(views)} views of {len(positions)} positions"
        raise InputError("beams_html", found, "at least one of each", "pass them.")
    queries = {query: n for n, query in enumerate(dict.fromkeys(view.query for view in views))}
    seen: set[tuple[str, str]] = set()
    for view in views:
        _check(view, len(positions), seen)
    shown = [
        _view(view, queries[view.query], positions, " hidden" if place else "")
        for place, view in enumerate(views)
    ]
    return (
        f'<figure class="ms-beam" style="--n:{len(positions)}">'
        f"<figcaption>{html.escape(title)}</figcaption>{_controls(list(queries))}"
        f'<p class="ms-beam-status" role="status">{_summary(views[0])}</p>'
        f'{"".join(shown)}<p class="ms-beam-legend">{LEGEND}</p></figure>'
        f"<script>(() => {{{SCRIPT}}})();</script>"
    )


def _check(view: BeamView, length: int, seen: set[tuple[str, str]]) -> None:
    """Raises for a view that cannot be drawn; adds its query and state to `seen`."""
    where, key = f"BeamView of {view.query!r}", (view.query, view.state)
    if view.state not in STATES:
        raise one_of(f"{where}, state", view.state, list(STATES))
    if key in seen:
        raise InputError(where, f"{view.state!r} twice", "once", "leave one of them out.")
    seen.add(key)
    lengths = {len(words) for words in (view.asked, *view.paths)}
    if lengths != {length}:
        found = f"identifiers of {', '.join(map(str, sorted(lengths)))} words"
        raise InputError(where, found, f"{length}, one a position", 'fill up with "".')
    for name, others, rows in (
        ("scores", view.scores, view.paths),
        ("marked", view.marked, view.products),
    ):
        if len(others) != len(rows):
            found = f"{len(others)} for {len(rows)}"
            raise InputError(f"{where}, {name}", found, "as many", "pass one for each.")
    if not all(map(math.isfinite, view.scores)):
        remedy = "leave places without a beam out."
        raise InputError(f"{where}, scores", str(view.scores), "finite numbers", remedy)


def _controls(queries: Sequence[str]) -> str:
    """The search box with its queries, and the two states; the script brings them to light."""
    asks = "".join(
        f'<button type="button" class="ms-beam-ask" data-query="{n}">{html.escape(query)}</button>'
        for n, query in enumerate(queries)
    )
    states = "".join(
        f'<button type="button" class="ms-beam-state" data-state="{state}">{name}</button>'
        for state, name in STATES.items()
    )
    count = f"{len(queries)} sample quer{'y' if len(queries) == 1 else 'ies'}"
    return (
        '<div class="ms-beam-controls" hidden><div class="ms-beam-bar">'
        f'<label>Search <input type="search" placeholder="type over {count}" autocomplete="off"'
        ' spellcheck="false"></label>'
        f'<div class="ms-beam-states" role="group" aria-label="state">{states}</div></div>'
        f'<div class="ms-beam-asks" role="group" aria-label="sample queries">{asks}'
        f'<span class="ms-beam-none" role="status" hidden>None of the {count} has this; no model '
        "runs on this page.</span></div></div>"
    )


def _summary(view: BeamView) -> str:
    """What a view shows, as one sentence. Escaped."""
    marked, titles = view.marked[:SHOWN], view.products[:SHOWN]
    new = ", ".join(f"★ {word}" for word in view.reserved) or "a new word"
    found = f"{sum(marked)} of the {len(titles)} products shown" if titles else "no product"
    bound = f"{found} {'is' if sum(marked) == 1 or not titles else 'are'} bound to {new}"
    return html.escape(f"“{view.query}” {STATES[view.state]}: {bound}.")


def _view(view: BeamView, query: int, positions: Sequence[str], hidden: str) -> str:
    chips = "".join(
        f"<li{_class(view, word)}><small>{html.escape(name)}</small> "
        f"<span>{_word(view, word)}</span></li>"
        for name, word in zip(positions, view.asked, strict=True)
    )
    products = "".join(
        f'<li class="ms-beam-bound">{STAR.format("bound to the new word")}{html.escape(title)}</li>'
        if marked
        else f"<li>{html.escape(title)}</li>"
        for title, marked in zip(view.products[:SHOWN], view.marked, strict=False)
    )
    return (
        f'<div class="ms-beam-view" data-query="{query}" data-state="{view.state}"'
        f' data-say="{_summary(view)}"{hidden}>'
        '<p class="ms-beam-head">The query\'s own identifier</p>'
        f'<ol class="ms-beam-asked">{chips}</ol>{_tree(view, positions)}'
        '<p class="ms-beam-head">Products found, best first</p>'
        f'<ol class="ms-beam-products">{products or "<li>nothing found</li>"}</ol></div>'
    )


def _tree(view: BeamView, positions: Sequence[str]) -> str:
    """The beams, merged by prefix, in a box that scrolls by itself where it is too narrow."""
    best = max(view.scores, default=0.0)
    weights = [math.exp(score - best) for score in view.scores[:SHOWN]]
    shares = [weight / sum(weights) for weight in weights]
    names = " ".join(f"<span>{html.escape(name)}</span>" for name in positions)
    branches = _branches(view, shares, range(len(shares)), 0) or "<p>no beam</p>"
    count = f"{len(shares)} best beam{'' if len(shares) == 1 else 's'}"
    return (
        f'<p class="ms-beam-head">What the model writes: its {count}</p>'
        f'<div class="ms-beam-box" tabindex="0" role="region" aria-label="Tree of the {count}">'
        f'<div class="ms-beam-tree"><div class="ms-beam-names">{names} <em>rank, log p</em></div>'
        f"{branches}</div></div>"
    )


def _branches(view: BeamView, shares: Sequence[float], rows: Sequence[int], level: int) -> str:
    """What beams that agree so far write at `level` and after it, as a list.

    Shape: rows, places of `paths`, best first.
    """
    if not rows:
        return ""
    if level == len(view.asked):
        ends = (f"<b>{row + 1}</b> {view.scores[row]:.2f}".replace("-", "−") for row in rows)
        return f" <em>{'<br>'.join(ends)}</em>"
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(view.paths[row][level], []).append(row)
    items = []
    for word, members in groups.items():
        share = sum(shares[row] for row in members)
        part = f" <small>{_percent(share)}</small>" if len(groups) > 1 else ""
        after = _branches(view, shares, members, level + 1)
        state = _class(view, word, word == view.asked[level])
        box = f"<span>{_word(view, word)}{part}</span>"
        items.append(f'<li{state} style="--p:{share:.2f}">{box}{after}</li>')
    return f"<ul>{''.join(items)}</ul>"


def _class(view: BeamView, word: str, same: bool = False) -> str:
    names = {"new": word in view.reserved, "same": same, "empty": not word}
    found = " ".join(f"ms-beam-{name}" for name, holds in names.items() if holds)
    return f' class="{found}"' if found else ""


def _word(view: BeamView, word: str) -> str:
    star = STAR.format("new word") if word in view.reserved else ""
    return star + html.escape(word or EMPTY)


def _percent(share: float) -> str:
    return "&lt;1 %" if share < 0.01 else f"{100 * share:.0f} %"
