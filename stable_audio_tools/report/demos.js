/* Demos: a player and a strip of steps for each prompt or clip, one sound at a time. */

const audio = $("audio"); // the only player of the page: two sounds never overlap
const { steps, embedded, groups } = data.demos;
// A clip that stands for several steps is in the data once.
for (const row of groups.flatMap((group) => group.rows)) if (row.nearest) row.clips = row.nearest.map((i) => row.clips[i]);
const ICONS = { play: "M4.5 2.8v10.4L13 8z", pause: "M4.5 3h2v10h-2zM9.5 3h2v10h-2z" };
const urls = new Map();
const rows = [];
let selected = clamp(steps.indexOf(choices.read().step), -1, steps.length - 1);
if (selected < 0) selected = steps.length - 1;
let active = null; // the row that the player is playing
let touring = false; // whether the player goes on to the next step by itself
let frame = 0; // the next look at the player while it plays
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

const WHOLE = [0, 0, 1, 1]; // left, top, right, bottom of the plot in a picture, as fractions

/** Put a playhead at `share` of the sound over the plot in its picture. */
function placeHead(head, clip, share) {
  const [left, top, right, bottom] = clip?.picture.plot || WHOLE;
  Object.assign(head.style, { left: `${100 * (left + share * (right - left))}%`, top: `${100 * top}%`, bottom: `${100 * (1 - bottom)}%` });
}

/** The share of the sound at which a picture was clicked. */
function clickedShare(event, picture, clip) {
  const box = picture.getBoundingClientRect(), [left, , right] = clip?.picture.plot || WHOLE;
  return clamp(((event.clientX - box.left) / box.width - left) / (right - left), 0, 1);
}

/** One prompt (or clip) through training: a player for the chosen step, or for the original, and a thumbnail of every step. */
class Row {
  constructor(spec, original, heading) {
    Object.assign(this, { spec, original, heading, showsOriginal: false, ready: false, peers: [this], thumbs: new Map() });
    this.run = spec.run === undefined ? "" : `${spec.run}, `;
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
    this.tour = el("button", { type: "button", hidden: this.own().length < 2 }, "Play all steps");
    this.versus = el("button", { type: "button", hidden: true, title: "Switch between two of these while they play (x key)", "aria-label": `A/B of ${heading}` }, "A/B");
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
        el("div", { class: "more" }, this.compare, this.versus, this.tour, this.facts, this.link, this.trouble)),
      this.strip);
    this.listen();
    rows.push(this);
  }

  listen() {
    this.button.addEventListener("click", () => (active === this && !audio.paused ? audio.pause() : play(this)));
    this.seek.addEventListener("input", () => seekTo(this, Number(this.seek.value)));
    this.spectrogram.addEventListener("click", (event) => seekTo(this, clickedShare(event, this.spectrogram, this.clip), true));
    this.compare.addEventListener("click", () => this.toggleOriginal());
    this.tour.addEventListener("click", () => startTour(this));
    this.versus.addEventListener("click", () => compareSounds(this));
    this.image.addEventListener("error", () => { this.missing.hidden = false; this.missing.textContent = "the picture is not beside this page"; });
    this.image.addEventListener("load", () => {
      this.missing.hidden = true;
      this.spectrogram.style.aspectRatio = `${this.image.naturalWidth} / ${this.image.naturalHeight}`;
    });
  }

  /** Indices of the steps at which this was made. Others may show the clip of the nearest step. */
  own() {
    return [...this.spec.clips.keys()].filter((i) => this.spec.clips[i]?.step === steps[i]);
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
    if (this.original) this.thumbs.set("original", this.thumb(this.originalClip(), "original", () => { this.toggleOriginal(true); play(this); }));
    for (const i of this.own()) this.thumbs.set(this.spec.clips[i], this.thumb(this.spec.clips[i], count(steps[i]), () => choose(i, this)));
    this.strip.replaceChildren(...this.thumbs.values());
    this.strip.hidden = this.strip.children.length < 2;
    this.versus.hidden = soundsOf(this).length < 2;
    this.show();
  }

  thumb(clip, name, chosen) {
    const crop = el("span", { class: "crop" }), url = address(clip.picture);
    if (url) {
      const [left, top, right, bottom] = clip.picture.plot, image = el("img", { src: url, alt: "", loading: "lazy" });
      Object.assign(image.style, { width: `${100 / (right - left)}%`, height: `${100 / (bottom - top)}%`, left: `${(-100 * left) / (right - left)}%`, top: `${(-100 * top) / (bottom - top)}%` });
      crop.append(image);
    }
    const spoken = name === "original" ? "Play the original" : `Play ${this.run}step ${name}`;
    const button = el("button", { type: "button", class: clip.sound.url ? "thumb linked" : "thumb", "aria-pressed": "false", "aria-label": spoken }, crop, el("span", { class: "name" }, name));
    button.addEventListener("click", chosen);
    return el("li", {}, button);
  }

  /** Show the clip of the chosen step. */
  show() {
    if (!this.ready) return;
    const clip = this.clip, url = clip && address(clip.picture);
    const made = `step ${count(clip ? clip.step : steps[selected])}`;
    this.label.textContent = this.showsOriginal ? "Original" : `${this.run || `${capital(this.spec.kind)}, `}${made}`;
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
    this.compare.textContent = this.showsOriginal ? `Back to ${made}` : "Original";
    this.press();
    this.progress();
  }

  /** Mark the thumbnail of what the player shows and bring it into sight within its strip. */
  press() {
    const chosen = this.thumbs.get(this.showsOriginal ? "original" : this.clip);
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
    this.head.hidden = !mine || this.image.hidden;
    placeHead(this.head, this.clip, share);
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
  choose(row.own()[0], row);
  touring = true;
  row.progress();
}

function nextOfTour() {
  const next = touring ? active.own().find((i) => i > selected) : undefined;
  if (next === undefined) { touring = false; return active && active.progress(); }
  const row = active;
  choose(next, row);
  touring = true;
  row.progress();
}

function follow() {
  if (active) active.progress();
  cancelAnimationFrame(frame);
  if (!audio.paused) frame = requestAnimationFrame(follow);
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
  if (event.ctrlKey || event.metaKey || event.altKey || $("ab").open || !(inside || loose)) return;
  const control = event.target.closest("input, a, button");
  if (control && (control.matches("input") || event.key === " ")) return;
  const row = active || rows[0], beside = (way) => rows[clamp(rows.indexOf(row) + (active ? way : 0), 0, rows.length - 1)];
  const act = {
    " ": () => (audio.paused ? play(row) : audio.pause()),
    ArrowLeft: () => choose(selected - 1),
    ArrowRight: () => choose(selected + 1),
    o: () => row.toggleOriginal(),
    a: () => startTour(row),
    x: () => soundsOf(row).length > 1 && compareSounds(row),
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
  const found = [...made.map((row) => new Row(row, originals[0] || null, group.title)), ...originals.slice(1).map((row) => new Row(row, null, group.title))];
  for (const row of found) if (row.spec.line !== undefined) row.peers = found.filter((peer) => peer.spec.line === row.spec.line);
  return found;
}

/** Rows that are heard against each other stand side by side. */
function linesOf(found) {
  const lines = new Map();
  found.forEach((row, i) => lines.set(row.spec.line ?? `row ${i}`, [...(lines.get(row.spec.line ?? `row ${i}`) || []), row.node]));
  return [...lines.values()].map((nodes) => el("div", { class: "line" }, ...nodes));
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
  for (const group of groups) $("groups").append(el("article", { class: "group" }, el("h3", {}, group.title || "untitled"), ...linesOf(rowsOf(group))));
  rows.forEach((row) => seen.observe(row.node));
  listenToPlayer();
  document.addEventListener("keydown", demoKey);
  choose(selected);
}
