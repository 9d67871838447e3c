/* The run's report: draws curves, plays demos, searches the setup. All text goes in as text nodes, never as markup. */
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/* ---- small helpers ---- */

const element = (create) => (tag, attributes = {}, ...children) => {
  const node = create(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...children);
  return node;
};
const el = element((tag) => document.createElement(tag));
const svg = element((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const count = (value) => value.toLocaleString("en-US");

/** A value of a curve in four digits, with an exponent only where it is shorter. */
function figure(value) {
  if (value === null || value === undefined) return "not a number";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** What the reader has chosen outlives a reload of a running report; a browser that forbids storage forgets. */
const choices = {
  key: `report ${location.pathname}`,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(more) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...more })); } catch { /* forgotten */ }
  },
};

/* ---- curves ---- */

const LONG = 20; // a series with more points than this is smoothed, a shorter one is drawn with a dot at each point
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
    this.node = el("div", { class: "chart" }, this.top, this.plot, this.legend, this.tip);
    this.plot.addEventListener("pointermove", (event) => this.point(this.stepAt(event)));
    this.plot.addEventListener("pointerdown", (event) => this.point(this.stepAt(event)));
    this.plot.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && this.point(null));
    this.plot.addEventListener("blur", () => this.point(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
    allCharts.push(this);
  }

  /** Each series with the values that are drawn as its main line. */
  lines() {
    const weight = this.steady ? 0 : smoothing;
    return this.spec.series.map((s, i) => {
      const long = s.values.length > LONG;
      return { ...s, colour: `var(--line-${i % 4})`, long, main: long && weight > 0 ? smooth(s.values, weight) : s.values, smoothed: long && weight > 0 };
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
    if (line.low) add(svg("path"), { class: "range", d: this.area(line) });
    if (line.smoothed) add(svg("path"), { class: "raw", d: this.path(line.steps, line.values) });
    add(svg("path"), { class: "curve", d: this.path(line.steps, line.main) });
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
    return el("li", {}, swatch, `${line.name} ${last === undefined ? "" : figure(last)}`);
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
  if (!main) return;
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

/* ---- demos ---- */

const audio = $("audio"); // the only player of the page: two sounds never overlap
const { steps, embedded, groups } = data.demos;
const ICONS = { play: "M4.5 2.8v10.4L13 8z", pause: "M4.5 3h2v10h-2zM9.5 3h2v10h-2z" };
const urls = new Map();
const rows = [];
let selected = clamp(steps.indexOf(choices.read().step), -1, steps.length - 1);
if (selected < 0) selected = steps.length - 1;
let active = null; // the row that the player is playing
let touring = false; // whether the player goes on to the next step by itself
let resumeAt = null; // seconds to go on from, once the newly chosen sound is loaded

/** The address of an embedded or linked file, or null. A blob can be sought in where some browsers cannot seek in a data URI. */
function address(source) {
  if (!source.media) return source.url || null;
  if (!urls.has(source.media)) {
    const block = $(`media-${source.media}`);
    const bytes = Uint8Array.from(atob(block.textContent), (character) => character.charCodeAt(0));
    urls.set(source.media, URL.createObjectURL(new Blob([bytes], { type: block.dataset.mime })));
  }
  return urls.get(source.media);
}

const clock = (seconds) => (Number.isFinite(seconds) ? (seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`) : "");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** One prompt (or clip) through training: a player for the chosen step, or for the original, and a thumbnail of every step. */
class Row {
  constructor(spec, original, heading) {
    Object.assign(this, { spec, original, heading, showsOriginal: false, ready: false });
    this.label = el("strong");
    this.image = el("img", { alt: "" });
    this.missing = el("span", { class: "missing", hidden: true });
    this.head = el("span", { class: "playhead", hidden: true });
    this.spectrogram = el("div", { class: "spectrogram" }, this.image, this.missing, this.head);
    this.latents = el("img", { class: "latents", alt: "", hidden: true });
    this.icon = svg("path", { d: ICONS.play });
    this.button = el("button", { type: "button", class: "play" }, svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, this.icon));
    this.seek = el("input", { type: "range", class: "seek", min: 0, max: 1, step: 0.001, "aria-label": `Position in ${heading}` });
    this.seek.value = 0;
    this.time = el("span", { class: "time" });
    this.compare = el("button", { type: "button", "aria-pressed": "false", hidden: !original }, "Original");
    this.tour = el("button", { type: "button", hidden: spec.clips.filter(Boolean).length < 2 }, "Play all steps");
    this.facts = el("span");
    this.trouble = el("span", { class: "trouble", role: "status" });
    this.link = el("a", {}, "file");
    const about = spec.settings.map(([name, value]) => `${name} ${value}`);
    if (spec.title && !spec.title.includes(heading) && spec.title !== heading) about.push(spec.title);
    this.strip = el("ol", { class: "strip", "aria-label": "Steps" });
    this.node = el("div", { class: "row" },
      el("figure", { class: "player" },
        el("figcaption", {}, this.label, el("span", {}, about.join(" · "))),
        this.spectrogram,
        this.latents,
        el("div", { class: "controls" }, this.button, this.seek, this.time),
        el("div", { class: "more" }, this.compare, this.tour, this.facts, this.link, this.trouble)),
      this.strip);
    this.listen();
    rows.push(this);
  }

  listen() {
    this.button.addEventListener("click", () => (active === this && !audio.paused ? audio.pause() : play(this)));
    this.seek.addEventListener("input", () => seekTo(this, Number(this.seek.value)));
    this.spectrogram.addEventListener("click", (event) => {
      const box = this.spectrogram.getBoundingClientRect(), [left, , right] = this.clip?.picture.plot || [0, 0, 1, 1];
      seekTo(this, clamp(((event.clientX - box.left) / box.width - left) / (right - left), 0, 1), true);
    });
    this.compare.addEventListener("click", () => this.toggleOriginal());
    this.tour.addEventListener("click", () => startTour(this));
    this.image.addEventListener("error", () => { this.missing.hidden = false; this.missing.textContent = "the picture is not beside this page"; });
    this.image.addEventListener("load", () => {
      this.missing.hidden = true;
      this.spectrogram.style.aspectRatio = `${this.image.naturalWidth} / ${this.image.naturalHeight}`;
    });
  }

  /** The clip that the player shows now, or null. */
  get clip() {
    return this.showsOriginal ? this.originalClip() : this.spec.clips[selected];
  }

  /** The original of the chosen step, or the nearest one before or after it. */
  originalClip() {
    const clips = this.original.clips;
    return clips[selected] || clips.slice(0, selected).filter(Boolean).pop() || clips.find(Boolean) || null;
  }

  toggleOriginal(to = !this.showsOriginal) {
    if (!this.original || to === this.showsOriginal) return;
    this.showsOriginal = to;
    this.show();
    if (active === this) swap();
  }

  /** Fill in pictures: done when the row comes near the screen. */
  wake() {
    if (this.ready) return;
    this.ready = true;
    const thumbs = this.spec.clips.map((clip, i) => clip && this.thumb(clip, count(steps[i]), embedded[i], () => choose(i, this)));
    if (this.original) thumbs.unshift(this.thumb(this.originalClip(), "original", true, () => { this.toggleOriginal(true); play(this); }));
    this.strip.replaceChildren(...thumbs.filter(Boolean));
    this.strip.hidden = this.strip.children.length < 2;
    this.thumbs = this.original ? thumbs : [null, ...thumbs];
    this.show();
  }

  thumb(clip, name, inside, chosen) {
    const crop = el("span", { class: "crop" }), url = address(clip.picture);
    if (url) {
      const [left, top, right, bottom] = clip.picture.plot, image = el("img", { src: url, alt: "" });
      Object.assign(image.style, { width: `${100 / (right - left)}%`, height: `${100 / (bottom - top)}%`, left: `${(-100 * left) / (right - left)}%`, top: `${(-100 * top) / (bottom - top)}%` });
      crop.append(image);
    }
    const spoken = name === "original" ? "Play the original" : `Play step ${name}`;
    const button = el("button", { type: "button", class: inside ? "thumb" : "thumb linked", "aria-pressed": "false", "aria-label": spoken }, crop, el("span", { class: "name" }, name));
    button.addEventListener("click", chosen);
    return el("li", {}, button);
  }

  /** Show the clip of the chosen step. */
  show() {
    if (!this.ready) return;
    const clip = this.clip, url = clip && address(clip.picture);
    this.label.textContent = this.showsOriginal ? "Original" : `${capital(this.spec.kind)}, step ${count(steps[selected])}`;
    this.image.hidden = !url;
    if (url) {
      this.image.src = url;
      this.image.alt = `Spectrogram of ${this.heading}, ${this.label.textContent}`;
    }
    const latents = clip && address(clip.latents);
    this.latents.hidden = !latents;
    if (latents) {
      this.latents.src = latents;
      this.latents.alt = `Latents of ${this.heading}, ${this.label.textContent}`;
    }
    this.missing.hidden = Boolean(url);
    this.missing.textContent = clip ? "no picture" : "not made at this step";
    const sounds = Boolean(clip && address(clip.sound));
    this.button.disabled = this.seek.disabled = !sounds;
    this.trouble.textContent = clip && !sounds ? "the sound file is missing" : "";
    this.facts.textContent = clip ? clip.info.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ") : "";
    this.link.hidden = !clip || !clip.file;
    if (clip && clip.file) this.link.setAttribute("href", clip.file);
    this.link.textContent = clip && clip.lossy ? "exact file" : "file";
    this.compare.setAttribute("aria-pressed", this.showsOriginal);
    this.compare.textContent = this.showsOriginal ? `Back to step ${count(steps[selected])}` : "Original";
    this.press();
    this.progress();
  }

  /** Mark the thumbnail of what the player shows and bring it into sight within its strip. */
  press() {
    const chosen = this.thumbs[this.showsOriginal ? 0 : selected + 1];
    for (const button of this.strip.querySelectorAll("button")) button.setAttribute("aria-pressed", Boolean(chosen && chosen.contains(button)));
    if (chosen) this.strip.scrollTo({ left: chosen.offsetLeft - this.strip.offsetLeft - this.strip.clientWidth / 2 + 50, top: chosen.offsetTop - this.strip.offsetTop - 60 });
  }

  /** Button, position and playhead, from the player where this row is the active one. */
  progress() {
    const mine = active === this, running = mine && !audio.paused, share = mine && audio.duration ? audio.currentTime / audio.duration : 0;
    this.node.classList.toggle("active", mine);
    this.icon.setAttribute("d", running ? ICONS.pause : ICONS.play);
    this.button.setAttribute("aria-label", `${running ? "Pause" : "Play"} ${this.heading}, ${this.label.textContent}`);
    this.tour.textContent = mine && touring ? "Stop at this step" : "Play all steps";
    this.seek.value = share;
    this.time.textContent = mine && audio.duration ? `${audio.currentTime.toFixed(1)} / ${clock(audio.duration)}` : "";
    const [left, top, right, bottom] = this.clip?.picture.plot || [0, 0, 1, 1];
    this.head.hidden = !mine || this.image.hidden;
    Object.assign(this.head.style, { left: `${100 * (left + share * (right - left))}%`, top: `${100 * top}%`, bottom: `${100 * (1 - bottom)}%` });
  }
}

/** Give the player the active row's sound, keeping its position unless `at` (seconds) says another. */
function load(row, at) {
  const url = row.clip && address(row.clip.sound);
  if (!url) return false;
  if (audio.getAttribute("src") !== url) {
    resumeAt = at;
    audio.src = url;
  } else if (at !== null) audio.currentTime = at;
  return true;
}

function play(row, at = null) {
  const before = active;
  active = row;
  if (before && before !== row) { touring = false; before.progress(); }
  if (!load(row, at)) return row.progress();
  audio.play().catch((error) => error.name === "NotAllowedError" && (row.trouble.textContent = "the browser did not allow playing"));
}

/** The active row shows another clip: the player follows at the same position, playing if it was. */
function swap() {
  const playing = !audio.paused, at = audio.ended ? 0 : audio.currentTime;
  if (!load(active, at)) return audio.pause();
  if (playing) play(active, at);
}

function seekTo(row, share, start = false) {
  const begin = () => { if (Number.isFinite(audio.duration)) audio.currentTime = share * audio.duration; };
  if (active === row) begin();
  else audio.addEventListener("loadedmetadata", begin, { once: true });
  if (start || active !== row) play(row);
}

/** Choose the step of all rows; with `row`, play that row's clip of it from the start. */
function choose(index, row = null) {
  selected = clamp(index, 0, steps.length - 1);
  touring = touring && row === null;
  choices.write({ step: selected === steps.length - 1 ? null : steps[selected] });
  $("step").value = selected;
  $("step").setAttribute("aria-valuetext", `step ${count(steps[selected])}`);
  $("step-name").textContent = `step ${count(steps[selected])} · ${selected + 1}/${steps.length}`;
  $("earlier").disabled = selected === 0;
  $("later").disabled = selected === steps.length - 1;
  for (const each of rows) { each.showsOriginal = false; each.show(); }
  if (row) play(row, 0);
  else if (active) swap();
}

/** Play one row's clips of all steps, one after the other. */
function startTour(row) {
  if (touring && active === row) { touring = false; return row.progress(); }
  choose(row.spec.clips.findIndex(Boolean), row);
  touring = true;
  row.progress();
}

function nextOfTour() {
  const next = touring ? active.spec.clips.findIndex((clip, i) => clip && i > selected) : -1;
  if (next < 0) { touring = false; return active && active.progress(); }
  const row = active;
  choose(next, row);
  touring = true;
  row.progress();
}

function follow() {
  if (active) active.progress();
  if (!audio.paused) requestAnimationFrame(follow);
}

function listenToPlayer() {
  for (const name of ["play", "pause", "seeked", "durationchange"]) audio.addEventListener(name, follow);
  audio.addEventListener("loadedmetadata", () => {
    if (resumeAt !== null) audio.currentTime = Math.min(resumeAt, Math.max(0, audio.duration - 0.01));
    resumeAt = null;
  });
  audio.addEventListener("ended", () => (touring ? nextOfTour() : $("loop").checked ? play(active, 0) : follow()));
  audio.addEventListener("error", () => {
    if (!active) return;
    const linked = active.clip && active.clip.sound.url;
    active.trouble.textContent = linked ? "this sound is not inside the page: open the page in its run folder" : "the browser cannot play this sound";
  });
  $("volume").addEventListener("input", () => { audio.volume = Number($("volume").value); });
}

/** Keys that move nothing else on the page: they act in the demos, or after something has been played and nothing else has the focus. */
function demoKey(event) {
  const inside = $("listen").contains(event.target), loose = event.target === document.body && active;
  if (event.ctrlKey || event.metaKey || event.altKey || !(inside || loose)) return;
  const control = event.target.closest("input, a, button");
  if (control && (control.matches("input") || event.key === " ")) return;
  const row = active || rows[0], beside = (way) => rows[clamp(rows.indexOf(row) + (active ? way : 0), 0, rows.length - 1)];
  const act = {
    " ": () => (audio.paused ? play(row) : audio.pause()),
    ArrowLeft: () => choose(selected - 1),
    ArrowRight: () => choose(selected + 1),
    o: () => row.toggleOriginal(),
    a: () => startTour(row),
    j: () => goTo(beside(1)),
    k: () => goTo(beside(-1)),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function goTo(row) {
  row.wake();
  row.node.scrollIntoView({ block: "nearest" });
  play(row, 0);
}

/** Rows of a group: each thing that was made, with the group's original to compare it with. */
function rowsOf(group) {
  const isOriginal = (row) => row.kind === "original";
  const made = group.rows.filter((row) => !isOriginal(row)), originals = group.rows.filter(isOriginal);
  if (!made.length) return originals.map((row) => new Row(row, null, group.title));
  return [...made.map((row) => new Row(row, originals[0] || null, group.title)), ...originals.slice(1).map((row) => new Row(row, null, group.title))];
}

function embeddingInWords() {
  const inside = embedded.filter(Boolean).length;
  const lossy = groups.some((group) => group.rows.some((row) => row.clips.some((clip) => clip && clip.lossy)));
  const parts = [];
  if (inside < steps.length) parts.push(`${inside} of ${steps.length} steps are inside this page; those with a dashed frame are played from demos/ beside it.`);
  if (lossy) parts.push("Long sounds inside the page are MP3; the exact files are in demos/.");
  return parts.join(" ");
}

function showDemos() {
  if (!steps.length) return;
  $("listen").hidden = false;
  $("step").max = steps.length - 1;
  $("step").addEventListener("input", () => choose(Number($("step").value)));
  $("earlier").addEventListener("click", () => choose(selected - 1));
  $("later").addEventListener("click", () => choose(selected + 1));
  $("embedding").textContent = embeddingInWords();
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    rows.find((row) => row.node === entry.target).wake();
    seen.unobserve(entry.target);
  }), { rootMargin: "600px" });
  for (const group of groups) $("groups").append(el("article", { class: "group" }, el("h3", {}, group.title || "untitled"), ...rowsOf(group).map((row) => row.node)));
  rows.forEach((row) => seen.observe(row.node));
  listenToPlayer();
  document.addEventListener("keydown", demoKey);
  choose(selected);
}

/* ---- setup ---- */

/** Keep the lines of a pretty-printed document that hold `query`, what they stand in and what they hold. */
function filterLines(lines, query) {
  const depth = lines.map((line) => line.textContent.search(/\S|$/));
  const shown = new Set();
  let hits = 0;
  lines.forEach((line, i) => {
    const hit = query !== "" && line.textContent.toLowerCase().includes(query);
    line.classList.toggle("hit", hit);
    if (!hit) return;
    hits++;
    shown.add(i);
    for (let j = i - 1, above = depth[i]; j >= 0 && above > 0; j--) if (depth[j] < above) { shown.add(j); above = depth[j]; }
    for (let j = i + 1; j < lines.length && depth[j] > depth[i]; j++) shown.add(j);
  });
  lines.forEach((line, i) => { line.hidden = query !== "" && !shown.has(i); });
  return hits;
}

function showSetup() {
  const documents = [...document.querySelectorAll(".document pre")].map((pre) => {
    pre.replaceChildren(...pre.textContent.split("\n").map((line) => el("span", {}, line)));
    return { frame: pre.parentElement, lines: [...pre.children] };
  });
  document.querySelector(".search").hidden = !documents.length;
  $("search").addEventListener("input", () => {
    const query = $("search").value.trim().toLowerCase();
    let hits = 0;
    for (const { frame, lines } of documents) {
      const own = filterLines(lines, query);
      hits += own;
      frame.open = query !== "" && own > 0;
    }
    $("found").textContent = query === "" ? "" : hits === 1 ? "1 line" : `${hits} lines`;
  });
  document.querySelector(".resume").hidden = !$("resume").textContent;
  $("copy").addEventListener("click", () => {
    getSelection().selectAllChildren($("resume"));
    navigator.clipboard?.writeText($("resume").textContent).then(() => { $("copy").textContent = "Copied"; }, () => {});
  });
}

/* ---- a run in progress ---- */

function showAge() {
  if (data.status !== "running") return;
  const minutes = Math.floor((Date.now() - Date.parse(data.updated)) / 60000);
  if (minutes >= 10) document.querySelector(".status").textContent = `running, but not heard of for ${minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`}`;
  document.querySelector(".reload").hidden = false;
  $("reload").checked = Boolean(choices.read().reload);
  $("reload").addEventListener("change", () => choices.write({ reload: $("reload").checked }));
  setInterval(() => $("reload").checked && audio.paused && location.reload(), 30000);
}

showCharts();
showDemos();
showSetup();
showAge();
