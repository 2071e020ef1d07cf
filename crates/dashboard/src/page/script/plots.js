// Sparklines, and plots of the last minutes.

// A line through the samples in a box; the newest at the right.
function linePath(samples, width, height, most, steps) {
  if (samples.length < 2) return "";
  const step = width / (steps - 1);
  const left = width - step * (samples.length - 1);
  const point = (value, at) => {
    const y = height - 1 - (most > 0 ? (value / most) * (height - 2) : 0);
    return `${(left + at * step).toFixed(1)} ${y.toFixed(1)}`;
  };
  return `M${samples.map(point).join("L")}`;
}

function sparkline() {
  const line = makeSvg("path", { class: "spark-line" });
  const spark = makeSvg("svg", { class: "spark", viewBox: "0 0 96 22", preserveAspectRatio: "none", "aria-hidden": "true" });
  spark.append(line);
  return { spark, line };
}

function setSparkline(line, samples) {
  const most = Math.max(...samples, 0);
  setAttribute(line, "d", most > 0 ? linePath(samples, 96, 22, most, SAMPLES) : "");
}

// Numbers for an axis: one, two or five times a power of ten, or of two for bytes.
function roundUp(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((times) => times * power).find((number) => number >= most);
}

const PLOT = { height: 150, left: 62, right: 8, top: 8, bottom: 20 };

// What a plot is of, in seconds, and how far apart two samples may be that belong together: while nobody looks there are none.
const PLOTTED = 300;
const APART = 20;

// A line through what was sampled at moments, which are places between 0 and 1; where samples lack it ends and begins anew.
function momentPath(samples, width, height, most) {
  let before = null;
  const points = samples.map(({ place, time, value }) => {
    const y = height - 1 - (most > 0 ? (value / most) * (height - 2) : 0);
    const command = before !== null && time - before <= APART ? "L" : "M";
    before = time;
    return `${command}${(place * width).toFixed(1)} ${y.toFixed(1)}`;
  });
  return points.length > 1 ? points.join("") : "";
}

// The newest sums, if they are of now.
function latest(totals, now) {
  const total = totals.at(-1);
  return total && now - total.time <= APART ? total : undefined;
}

// A plot of several lines over the last five minutes. Its numbers are in the words of its label too, and under the
// pointer or the arrow keys.
class Plot {
  constructor(container, lines, format) {
    Object.assign(this, { lines, format, at: null });
    const { height, left, right, top, bottom } = PLOT;
    // As wide as it is shown, so that its words are as large as others.
    const width = Math.min(Math.max(container.clientWidth, 280), 900);
    this.width = width;
    this.inner = { width: width - left - right, height: height - top - bottom };
    this.grid = makeSvg("g", { class: "plot-grid" });
    this.paths = lines.map((line) => makeSvg("path", { class: "plot-line", "data-line": line.name }));
    this.cursor = makeSvg("path", { class: "plot-cursor" });
    const inside = makeSvg("g", { transform: `translate(${left} ${top})` }, this.grid, ...this.paths, this.cursor);
    this.svg = makeSvg("svg", {
      class: "plot",
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      tabindex: "0",
      onpointermove: (event) => this.point(event),
      onpointerleave: () => this.show(null),
      onkeydown: (event) => this.key(event),
    }, inside);
    this.readout = make("p", { class: "readout" });
    container.append(this.svg, this.readout);
    this.ticks = [0, 0.5, 1].map((share) => {
      const y = this.inner.height * (1 - share);
      const text = makeSvg("text", { x: -8, y: y + 4, "text-anchor": "end" });
      this.grid.append(makeSvg("path", { d: `M0 ${y}H${this.inner.width}` }), text);
      return { share, text };
    });
    for (const [share, word] of [[0, "5 min ago"], [1, "now"]]) {
      const x = this.inner.width * share;
      const anchor = share ? "end" : "start";
      this.grid.append(makeSvg("text", { x, y: this.inner.height + 15, "text-anchor": anchor, text: word }));
    }
  }

  set(totals, now) {
    this.totals = totals;
    this.now = now;
    const all = this.lines.flatMap((line) => totals.map(line.value));
    const most = roundUp(Math.max(...all.filter((value) => value > 0), 0));
    const isFlat = !all.some((value) => value > 0);
    for (const { share, text } of this.ticks) setText(text, share === 0 ? "0" : isFlat ? "" : this.format(most * share));
    this.lines.forEach((line, number) => {
      const samples = totals.map((total) => ({ place: this.place(total), time: total.time, value: line.value(total) ?? 0 }));
      setAttribute(this.paths[number], "d", momentPath(samples, this.inner.width, this.inner.height, most));
    });
    this.show(this.at);
  }

  // Where a sample is, between five minutes ago and now.
  place(total) {
    return 1 - (this.now - total.time) / PLOTTED;
  }

  // The words for a moment, or for now.
  show(at) {
    const totals = this.totals ?? [];
    this.at = at !== null && at < totals.length ? at : null;
    const chosen = this.at === null ? undefined : totals[this.at];
    const total = chosen ?? latest(totals, this.now);
    const words = this.lines.map((line) => `${line.word} ${total ? this.format(line.value(total)) : "–"}`);
    const when = chosen ? clock(new Date(chosen.time * 1000)) : "now";
    setText(this.readout, `${when}: ${words.join(", ")}`);
    setAttribute(this.svg, "aria-label", `${words.join(", ")}, ${when}`);
    const x = chosen && this.place(chosen) * this.inner.width;
    setAttribute(this.cursor, "d", chosen ? `M${x.toFixed(1)} 0V${this.inner.height}` : "");
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width - PLOT.left;
    const totals = this.totals ?? [];
    const distance = (at) => Math.abs(this.place(totals[at]) * this.inner.width - x);
    let nearest = null;
    for (const at of totals.keys()) if (nearest === null || distance(at) < distance(nearest)) nearest = at;
    // Beside the line there is nothing to tell.
    const seconds = nearest === null ? 0 : (distance(nearest) / this.inner.width) * PLOTTED;
    this.show(seconds <= APART ? nearest : null);
  }

  key(event) {
    const last = (this.totals?.length ?? 0) - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || last < 0) return;
    event.preventDefault();
    const at = (this.at ?? last + 1) + step;
    this.show(at > last ? null : Math.max(at, 0));
  }
}
