/* Interactive line charts of the book: reads the JSON that minisearch.plots.interactive_lines
   wrote into <figure class="ms-figure"> and replaces the picture beside it by an SVG chart with
   a legend that switches lines off and a readout for mouse, touch and keyboard.
   No dependency, no request; where it does not run, the picture stays. */
(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 4", "9 3 2 3", "2 3", "9 2 2 2 2 2", "1 2"]; // as plots.DASHES
  const STYLES = 6;

  function add(parent, tag, attributes = {}, text = "") {
    const svg = parent.namespaceURI === NS || tag === "svg";
    const node = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    return parent.appendChild(node);
  }

  /** Round numbers from low to high, about `count` of them. */
  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
      found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  const format = (value) =>
    value === null || value === undefined
      ? "no value"
      : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });

  function range(lists) {
    const values = lists.flat().filter((v) => v !== null);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    return [low, high];
  }

  class Chart {
    constructor(figure, spec) {
      this.spec = spec;
      this.series = spec.series.map((s, i) => ({ ...s, style: i % STYLES, shown: true }));
      this.at = null; // the x value that is read out, if any
      const root = add(figure, "div", { class: "ms-chart" });
      figure.insertBefore(root, figure.querySelector("figcaption"));
      this.legend(root);
      this.plot = add(root, "div", {
        class: "ms-plot", tabindex: "0", role: "slider", "aria-label": spec.alt,
        "aria-orientation": "horizontal",
      });
      this.readout = add(root, "div", { class: "ms-readout" });
      this.plot.addEventListener("keydown", (event) => this.key(event));
      for (const kind of ["pointermove", "pointerdown"])
        this.plot.addEventListener(kind, (event) => this.point(event));
      this.plot.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse") this.read(null);
      });
      new ResizeObserver(() => this.draw()).observe(root);
      this.draw();
      this.read(null);
    }

    legend(root) {
      const list = add(root, "div", { class: "ms-legend", role: "group", "aria-label": "Lines" });
      for (const line of this.series) {
        const look = { type: "button", "aria-pressed": "true", class: `ms-c${line.style}` };
        const button = add(list, "button", look);
        const swatch = add(button, "svg", { width: 26, height: 10, "aria-hidden": "true" });
        add(swatch, "path", { d: "M1 5H25", "stroke-dasharray": DASHES[line.style] });
        add(button, "span", {}, line.name);
        button.addEventListener("click", () => {
          const others = this.series.some((s) => s.shown && s !== line);
          if (line.shown && !others) return; // the last line stays
          line.shown = !line.shown;
          button.setAttribute("aria-pressed", String(line.shown));
          this.draw();
          this.read(this.at);
        });
      }
    }

    get visible() { return this.series.filter((s) => s.shown); }
    get xs() { return [...new Set(this.visible.flatMap((s) => s.x))].sort((a, b) => a - b); }

    draw() {
      const width = this.plot.clientWidth;
      if (!width) return; // inside a folded box: the observer calls again when it opens
      const height = Math.round(Math.max(230, Math.min(380, width * 0.52)));
      const [x0, x1] = range(this.series.map((s) => s.x));
      let [y0, y1] = range(this.series.flatMap((s) => [s.y, s.low ?? [], s.high ?? []]));
      [y0, y1] = [y0 - (y1 - y0) * 0.05, y1 + (y1 - y0) * 0.05];
      const yTicks = ticks(y0, y1, 5);
      const left = 16 + 7.5 * Math.max(...yTicks.map((t) => format(t).length));
      const box = { left, right: width - 16, top: 30, bottom: height - 44 };
      this.toX = (v) => box.left + ((v - x0) / (x1 - x0)) * (box.right - box.left);
      const toY = (v) => box.bottom - ((v - y0) / (y1 - y0)) * (box.bottom - box.top);
      this.plot.replaceChildren();
      const svg = add(this.plot, "svg", { width, height, "aria-hidden": "true" });
      for (const t of yTicks) {
        add(svg, "path", { class: "ms-grid", d: `M${box.left} ${toY(t)}H${box.right}` });
        add(svg, "text", { x: box.left - 7, y: toY(t) + 4, "text-anchor": "end" }, format(t));
      }
      for (const t of ticks(x0, x1, Math.floor(width / 90))) {
        add(svg, "path", { class: "ms-axis", d: `M${this.toX(t)} ${box.bottom}v5` });
        add(svg, "text", { x: this.toX(t), y: box.bottom + 19, "text-anchor": "middle" }, format(t));
      }
      add(svg, "path", { class: "ms-axis", d: `M${box.left} ${box.bottom}H${box.right}` });
      const middle = (box.left + box.right) / 2;
      add(svg, "text", { x: middle, y: height - 6, "text-anchor": "middle" }, this.spec.xLabel);
      add(svg, "text", { x: 4, y: 15 }, this.spec.yLabel);
      for (const line of this.visible) this.drawLine(svg, line, toY);
      this.guide = add(svg, "path", { class: "ms-guide", d: "" });
      this.guideLine = (x) => (x === null ? "" : `M${this.toX(x)} ${box.top}V${box.bottom}`);
      this.guide.setAttribute("d", this.guideLine(this.at));
    }

    drawLine(svg, line, toY) {
      const group = add(svg, "g", { class: `ms-line ms-c${line.style}`, "data-name": line.name });
      const known = line.x.map((_, i) => i).filter((i) => line.y[i] !== null);
      if (line.low) {
        const edge = known.filter((i) => line.low[i] !== null && line.high[i] !== null);
        const corner = (i, values) => `${this.toX(line.x[i])},${toY(values[i])}`;
        const upper = edge.map((i) => corner(i, line.high));
        const lower = edge.map((i) => corner(i, line.low)).reverse();
        add(group, "polygon", { class: "ms-band", points: [...upper, ...lower].join(" ") });
      }
      const path = known.map((i) => {
        const command = i > 0 && line.y[i - 1] !== null ? "L" : "M"; // a gap starts anew
        return `${command}${this.toX(line.x[i])} ${toY(line.y[i])}`;
      });
      add(group, "path", { d: path.join(""), "stroke-dasharray": DASHES[line.style] });
      if (known.length <= 12)
        for (const i of known) add(group, "circle", { cx: this.toX(line.x[i]), cy: toY(line.y[i]), r: 3.5 });
    }

    /** Show the values of all visible lines at x; null clears the readout. */
    read(x) {
      const xs = this.xs;
      if (x !== null && !xs.includes(x)) x = null;
      this.at = x;
      this.guide?.setAttribute("d", this.guideLine(x));
      this.readout.replaceChildren();
      if (x === null) {
        add(this.readout, "span", {}, "Point at the chart, or focus it and use the arrow keys.");
      } else {
        add(this.readout, "b", {}, `${this.spec.xLabel}: ${format(x)}`);
        for (const line of this.visible) {
          const i = line.x.indexOf(x);
          if (i < 0) continue;
          const band = line.low ? ` (${format(line.low[i])} to ${format(line.high[i])})` : "";
          const item = add(this.readout, "span", { class: `ms-c${line.style}` });
          add(item, "i", { "aria-hidden": "true" });
          item.append(`${line.name}: ${format(line.y[i])}${band}`);
        }
      }
      const place = x === null ? 0 : xs.indexOf(x);
      this.plot.setAttribute("aria-valuemin", "0");
      this.plot.setAttribute("aria-valuemax", String(xs.length - 1));
      this.plot.setAttribute("aria-valuenow", String(place));
      const spoken = [...this.readout.children].map((node) => node.textContent);
      this.plot.setAttribute("aria-valuetext", spoken.join("; "));
    }

    point(event) {
      if (!this.toX) return;
      const mouse = event.clientX - this.plot.getBoundingClientRect().left;
      const distance = (x) => Math.abs(this.toX(x) - mouse);
      this.read(this.xs.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
    }

    key(event) {
      const xs = this.xs;
      const here = this.at === null ? -1 : xs.indexOf(this.at);
      const [next, back] = [here + 1, here - 1];
      const ends = { Home: 0, End: xs.length - 1 };
      const moves = { ArrowRight: next, ArrowUp: next, ArrowLeft: back, ArrowDown: back, ...ends };
      if (event.key === "Escape") return this.read(null);
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.read(xs[Math.max(0, Math.min(xs.length - 1, moves[event.key]))]);
    }
  }

  function start() {
    for (const figure of document.querySelectorAll("figure.ms-figure:not(.ms-live)")) {
      try {
        new Chart(figure, JSON.parse(figure.querySelector(".ms-spec").textContent));
        figure.classList.add("ms-live"); // hides the picture
      } catch (error) {
        figure.querySelector(".ms-chart")?.remove();
        console.warn("This chart stays a picture:", error);
      }
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
