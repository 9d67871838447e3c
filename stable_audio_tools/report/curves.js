/* Curves: one chart for metrics that belong together, drawn as SVG. */

const LONG = 20; // a series with more points than this is smoothed, a shorter one is drawn with a dot at each point
const COLOURS = 8; // of lines in the style
const EDGE = { left: 54, right: 12, top: 10, bottom: 24 };
const lastStep = Math.max(1, data.last_step);
const allCharts = [];
let smoothing = choices.read().smoothing ?? 0.7;

/** Exponential moving average, corrected for its start; null (no number) stays null and is not averaged. */
function smooth(values, weight) {
  let mean = 0, left = 1;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    left *= weight;
    return mean / (1 - left);
  });
}

/** Round tick positions: 1, 2 or 5 times a power of ten. */
function linearTicks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high) {
  const within = (factors) => {
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++)
      for (const factor of factors) if (Math.log10(factor) + power >= low && Math.log10(factor) + power <= high) ticks.push(factor * 10 ** power);
    return ticks;
  };
  const decades = within([1]);
  if (decades.length > 6) return decades.filter((_, i) => i % Math.ceil(decades.length / 6) === 0);
  if (decades.length > 2) return decades;
  const finer = within([1, 2, 5]);
  return finer.length > 1 ? finer : linearTicks(10 ** low, 10 ** high, 4).filter((tick) => tick > 0);
}

class Chart {
  constructor(spec, height) {
    this.spec = spec;
    this.height = height;
    this.steady = /(^|[/_.-])(lr|learning_rate)($|[/_.-])/.test(spec.title); // a schedule has no noise to smooth away
    const positive = spec.series.some((s) => s.values.some((v) => v > 0));
    this.log = el("input", { type: "checkbox", disabled: !positive });
    this.log.addEventListener("change", () => this.draw());
    this.top = el("div", { class: "top" }, el("h3", {}, spec.title), el("label", {}, this.log, " log"));
    this.plot = svg("svg", { class: "plot", role: "img", tabindex: 0, height });
    this.legend = el("ul", { class: "legend" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.node = el("div", { class: "chart" }, this.top, this.plot, this.legend, ...this.recipe(), this.tip);
    this.plot.addEventListener("pointermove", (event) => this.point(this.stepAt(event)));
    this.plot.addEventListener("pointerdown", (event) => this.point(this.stepAt(event)));
    this.plot.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.point(null));
    this.plot.addEventListener("blur", () => this.point(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
    allCharts.push(this);
  }

  /** How an evaluation was made, or that its series were made in different ways. */
  recipe() {
    const [recipe, other] = new Set(this.spec.series.map((s) => s.recipe).filter(Boolean));
    if (other) return [el("p", { class: "warn" }, "The recipes differ: not comparable.")];
    return recipe ? [el("details", { class: "recipe" }, el("summary", {}, "how"), el("p", {}, recipe))] : [];
  }

  /** Each series with the values that are drawn as its main line. */
  lines() {
    const weight = this.steady ? 0 : smoothing;
    return this.spec.series.map((s, i) => {
      const long = s.values.length > LONG && !s.bars;
      return { ...s, colour: `var(--line-${(s.colour ?? i) % COLOURS})`, long, main: long && weight > 0 ? smooth(s.values, weight) : s.values, smoothed: long && weight > 0 };
    });
  }

  draw() {
    this.width = this.plot.clientWidth;
    if (!this.width) return;
    this.drawn = this.lines();
    this.scales();
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.plot.setAttribute("aria-label", this.inWords());
    this.cursor = svg("g");
    this.plot.replaceChildren(...this.axes(), ...this.drawn.flatMap((line) => this.curve(line)), ...this.marks(), this.cursor);
    this.legend.replaceChildren(...this.drawn.map((line) => this.entry(line)), ...this.remark());
  }

  scales() {
    const usable = (v) => v !== null && (!this.log.checked || v > 0);
    const values = this.drawn.flatMap((s) => [...s.values, ...s.main, ...(s.low || []), ...(s.high || [])]).filter(usable);
    const level = this.log.checked ? Math.log10 : (v) => v;
    let low = Infinity, high = -Infinity;
    for (const v of values) { low = Math.min(low, level(v)); high = Math.max(high, level(v)); }
    if (low > high) [low, high] = [0, 1];
    const pad = (high - low) * 0.04 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low - pad, high + pad];
    this.bounds = [low, high];
    const span = this.width - EDGE.left - EDGE.right, rise = this.height - EDGE.top - EDGE.bottom;
    this.x = (step) => EDGE.left + (span * step) / lastStep;
    this.y = (v) => (usable(v) ? EDGE.top + rise * (1 - (level(v) - low) / (high - low)) : null);
  }

  axes() {
    const [low, high] = this.bounds, base = this.height - EDGE.bottom, parts = [];
    for (const tick of this.log.checked ? logTicks(low, high) : linearTicks(low, high, this.height > 200 ? 6 : 4)) {
      const y = this.y(tick);
      parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }));
      parts.push(svg("text", { x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, figure(tick)));
    }
    for (const tick of linearTicks(0, lastStep, clamp(this.width / 75, 2, 10)).filter(Number.isInteger)) {
      const x = this.x(tick), end = x > this.width - 30;
      parts.push(svg("line", { class: "grid", x1: x, x2: x, y1: base, y2: base + 4 }));
      parts.push(svg("text", { x: end ? this.width - 2 : x, y: base + 17, "text-anchor": end ? "end" : "middle" }, count(tick)));
    }
    for (const step of data.resumed)
      parts.push(svg("line", { class: "resumed", x1: this.x(step), x2: this.x(step), y1: EDGE.top, y2: base }, svg("title", {}, `resumed at step ${count(step)}`)));
    return parts;
  }

  curve(line) {
    const parts = [];
    const add = (shape, attributes) => {
      shape.style.setProperty("--colour", line.colour);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      parts.push(shape);
    };
    if (line.low) add(svg("path"), line.bars ? { class: "bars", d: this.bars(line) } : { class: "range", d: this.area(line) });
    if (line.smoothed) add(svg("path"), { class: "raw", d: this.path(line.steps, line.values) });
    add(svg("path"), { class: line.dashed ? "curve dashed" : "curve", d: this.path(line.steps, line.main) });
    line.main.forEach((v, i) => {
      const alone = (line.main[i - 1] ?? null) === null && (line.main[i + 1] ?? null) === null;
      if (this.y(v) !== null && (!line.long || alone)) add(svg("circle"), { class: "dot", cx: this.x(line.steps[i]), cy: this.y(v), r: 2.5 });
    });
    return parts;
  }

  /** A path that is interrupted where there is no number. */
  path(steps, values) {
    let text = "", pen = "M";
    values.forEach((v, i) => {
      const y = this.y(v);
      if (y !== null) text += `${pen}${this.x(steps[i]).toFixed(1)} ${y.toFixed(1)}`;
      pen = y === null ? "M" : "L";
    });
    return text;
  }

  /** The range between low and high of each bucket, one polygon for each uninterrupted stretch. */
  area(line) {
    const floor = this.log.checked ? 10 ** this.bounds[0] : null;
    let text = "", there = [], back = [];
    const close = () => {
      if (there.length) text += `M${there.join("L")}L${back.reverse().join("L")}Z`;
      [there, back] = [[], []];
    };
    line.steps.forEach((step, i) => {
      const high = this.y(line.high[i]), low = this.y(line.low[i]) ?? this.y(floor);
      if (high === null) return close();
      there.push(`${this.x(step).toFixed(1)} ${high.toFixed(1)}`);
      back.push(`${this.x(step).toFixed(1)} ${low.toFixed(1)}`);
    });
    close();
    return text;
  }

  /** A vertical line from low to high at each step, where both are known. */
  bars(line) {
    return line.steps.map((step, i) => {
      const low = this.y(line.low[i]), high = this.y(line.high[i]), x = this.x(step);
      return low === null || high === null ? "" : `M${x - 4} ${low}h8M${x - 4} ${high}h8M${x} ${low}V${high}`;
    }).join("");
  }

  /** A red triangle on the axis for each step at which a value was NaN or infinite. */
  marks() {
    const base = this.height - EDGE.bottom;
    return this.spec.series.flatMap((s) => s.bad).map((step) => {
      const x = this.x(step);
      return svg("path", { class: "bad", d: `M${x - 4} ${base}L${x + 4} ${base}L${x} ${base - 8}Z` }, svg("title", {}, `no number at step ${count(step)}`));
    });
  }

  entry(line) {
    const last = line.main.filter((v) => v !== null).pop();
    const swatch = el("span", { class: "swatch" });
    swatch.style.setProperty("--colour", line.colour);
    if (line.dashed) swatch.classList.add("dashed");
    return el("li", {}, swatch, `${line.name} ${last === undefined ? "" : figure(last)}${this.best(line)}`);
  }

  /** The best value and its step, where it is known which is better. */
  best(line) {
    if (!line.better) return "";
    const sign = line.better === "lower" ? 1 : -1;
    const i = line.values.reduce((found, v, k) => (v !== null && (found < 0 || sign * v < sign * line.values[found]) ? k : found), -1);
    return i < 0 ? "" : `, best ${figure(line.values[i])} at step ${count(line.steps[i])} (${line.better} is better)`;
  }

  remark() {
    const bad = this.spec.series.flatMap((s) => s.bad);
    return bad.length ? [el("li", {}, `▲ NaN or infinite, first at step ${count(Math.min(...bad))}`)] : [];
  }

  inWords() {
    return this.drawn.map((s) => {
      const known = s.values.map((v, i) => [s.steps[i], v]).filter(([, v]) => v !== null);
      if (!known.length) return `${s.name}: no values`;
      const [first, last] = [known[0], known[known.length - 1]];
      return `${s.name} from ${figure(first[1])} at step ${count(first[0])} to ${figure(last[1])} at step ${count(last[0])}`;
    }).join("; ");
  }

  stepAt(event) {
    const box = this.plot.getBoundingClientRect();
    return ((event.clientX - box.left - EDGE.left) / (this.width - EDGE.left - EDGE.right)) * lastStep;
  }

  key(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    const steps = this.drawn[0].steps;
    const index = this.pointed === undefined || this.pointed === null ? (way > 0 ? -1 : steps.length) : nearest(steps, this.pointed);
    this.point(steps[clamp(index + way * (event.shiftKey ? 10 : 1), 0, steps.length - 1)]);
  }

  /** Show the values nearest to `step`; null hides them. */
  point(step) {
    if (!this.drawn) return;
    this.pointed = step;
    this.tip.hidden = step === null;
    this.cursor.replaceChildren();
    if (step === null) return;
    const found = this.drawn.filter((s) => s.steps.length).map((s) => ({ s, i: nearest(s.steps, step) }));
    if (!found.length) return;
    const closest = found.reduce((a, b) => (Math.abs(b.s.steps[b.i] - step) < Math.abs(a.s.steps[a.i] - step) ? b : a));
    const at = closest.s.steps[closest.i], x = this.x(at);
    this.cursor.append(svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: this.height - EDGE.bottom }));
    this.tip.replaceChildren(el("div", {}, `step ${count(at)}`));
    for (const { s, i } of found) {
      const y = this.y(s.main[i]), dot = svg("circle", { class: "dot", cx: this.x(s.steps[i]), cy: y ?? 0, r: 4 }), swatch = el("span", { class: "swatch" });
      for (const node of [dot, swatch]) node.style.setProperty("--colour", s.colour);
      if (y !== null) this.cursor.append(dot);
      const own = s.steps[i] === at ? "" : ` (step ${count(s.steps[i])})`;
      const wide = s.low && s.low[i] !== s.high[i] ? `, ${figure(s.low[i])} to ${figure(s.high[i])}` : "";
      this.tip.append(el("div", {}, swatch, `${s.name} ${figure(s.values[i])}${wide}${own}`), ...(s.smoothed ? [el("div", {}, `smoothed ${figure(s.main[i])}`)] : []));
    }
    const room = this.node.clientWidth - this.tip.offsetWidth - 8;
    this.tip.style.left = `${clamp(x + 28 > room ? x - this.tip.offsetWidth : x + 28, 8, Math.max(room, 8))}px`;
    this.tip.style.top = `${this.top.offsetTop + this.top.offsetHeight + 8}px`;
  }
}

/** Index of the ascending number nearest to `value`. */
function nearest(numbers, value) {
  let low = 0, high = numbers.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(numbers[high] - value) < Math.abs(numbers[low] - value) ? high : low;
}

function showCharts() {
  const [main, ...others] = data.charts;
  if (main) showMetrics(main, others);
  $("evaluations").append(...data.evaluations.map((spec) => new Chart(spec, 150).node));
}

/** The first chart large and with the slider that smooths them all, the others small. */
function showMetrics(main, others) {
  const chart = new Chart(main, 260);
  const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, id: "smoothing" });
  slider.value = smoothing;
  slider.addEventListener("input", () => {
    smoothing = Number(slider.value);
    choices.write({ smoothing });
    allCharts.forEach((each) => each.draw());
  });
  chart.top.insertBefore(el("label", {}, "smoothing ", slider), chart.top.lastChild);
  $("loss").hidden = false;
  $("loss").append(chart.node);
  $("metrics").hidden = !others.length;
  $("charts").append(...others.map((spec) => new Chart(spec, 150).node));
}
