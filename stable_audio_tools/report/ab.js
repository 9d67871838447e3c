/* A/B: two sounds run side by side, one of them muted; switching changes which, at the same place in both. */

const NAMES = ["A", "B", "X"];
const players = [new Audio(), new Audio()];
const sides = NAMES.slice(0, 2).map((name) => new Side(name));
const hearButtons = NAMES.map((name) => el("button", { type: "button", "aria-pressed": "false" }, name));
let sounds = []; // what can be chosen: a name and a clip each
let hearing = 0; // index into NAMES
let isX = 0; // which of the two X is
let trials = 0, right = 0;
let pairFrame = 0;

/** One of the two: which sound, and its spectrogram. */
function Side(name) {
  this.choice = el("select", { "aria-label": `Sound ${name}` });
  this.image = el("img", { alt: "" });
  this.head = el("span", { class: "playhead" });
  this.picture = el("div", { class: "spectrogram" }, this.image, this.head);
  this.node = el("figure", { class: "side" }, el("figcaption", {}, el("strong", {}, name), this.choice), this.picture);
}

/** All that can be hearing against each other where `row` is: its steps, those of its peers in other runs, and the original. */
function soundsOf(row) {
  const found = row.peers.flatMap((peer) => peer.own().map((i) => ({ name: `step ${count(steps[i])}${peer.run && `, ${peer.spec.run}`}`, clip: peer.spec.clips[i] })));
  if (row.original) found.unshift({ name: "original", clip: row.originalClip() });
  return found.filter(({ clip }) => clip && address(clip.sound));
}

/** Open on the original, another run or the step before as A, and what `row` shows as B. */
function compareSounds(row) {
  audio.pause();
  sounds = soundsOf(row);
  const at = (clip) => sounds.findIndex((sound) => sound.clip === clip);
  const other = row.peers.find((peer) => peer !== row), shown = Math.max(0, at(row.spec.clips[selected]));
  const first = row.original ? 0 : other ? at(other.spec.clips[selected]) : shown - 1;
  const pair = other && row.peers.indexOf(other) > row.peers.indexOf(row) ? [shown, first] : [first, shown];
  $("ab-title").textContent = row.heading;
  sides.forEach((side, k) => {
    side.choice.replaceChildren(...sounds.map(({ name }, i) => el("option", { value: i }, name)));
    side.choice.value = pair.includes(-1) ? k : pair[k];
  });
  [trials, right] = [0, 0];
  $("ab-blind").checked = false;
  startBlind();
  sides.forEach((_, k) => takeSound(k));
  $("ab").showModal();
  $("ab-play").focus();
}

const chosenSound = (k) => sounds[Number(sides[k].choice.value)];
const audible = () => (hearing === 2 ? isX : hearing);
const pairPlays = () => !players[audible()].paused;

/** Side `k` has another sound: load it, and go on where the other one is. */
function takeSound(k) {
  const { name, clip } = chosenSound(k), url = address(clip.picture), went = !players[1 - k].paused;
  players[k].src = address(clip.sound);
  players[k].currentTime = players[1 - k].currentTime || 0;
  if (went) players[k].play();
  sides[k].image.hidden = !url;
  if (url) sides[k].image.src = url;
  sides[k].image.alt = `Spectrogram of ${NAMES[k]}, ${name}`;
  matchLoudness();
  hear(hearing);
}

/** The louder one is turned down, so that neither is cut off. */
function matchLoudness() {
  const loudness = [0, 1].map((k) => chosenSound(k).clip.loudness), known = loudness.every((value) => value !== null);
  const excess = known ? loudness[0] - loudness[1] : 0, louder = excess > 0 ? 0 : 1;
  $("ab-match").disabled = !known;
  const on = known && $("ab-match").checked;
  players.forEach((player, k) => { player.volume = audio.volume * (on && k === louder ? 10 ** (-Math.abs(excess) / 20) : 1); });
  const gap = `${Math.abs(excess).toFixed(1)} dB`;
  $("ab-level").textContent = !known ? "(the loudness of one is not known)" : Math.abs(excess) < 0.05 ? "(both are equally loud)" : on ? `(${NAMES[louder]} is turned down by ${gap})` : `(${NAMES[louder]} is louder by ${gap})`;
}

/** Hear one of A, B and X from where the sounds are. */
function hear(which) {
  const from = players[audible()];
  hearing = which;
  const to = players[audible()];
  if (Math.abs(to.currentTime - from.currentTime) > 0.02) to.currentTime = from.currentTime;
  players.forEach((player, k) => { player.muted = k !== audible(); });
  hearButtons.forEach((button, i) => button.setAttribute("aria-pressed", i === hearing));
  sides.forEach((side, k) => side.node.classList.toggle("heard", k === hearing));
  showPosition();
}

function startBoth(at = null) {
  for (const player of players) {
    if (at !== null) player.currentTime = at;
    player.play().catch(() => { $("ab-verdict").textContent = "one of the sounds cannot be played"; });
  }
}

const stopBoth = () => players.forEach((player) => player.pause());
const startOrStop = () => (pairPlays() ? stopBoth() : startBoth(players[audible()].ended ? 0 : null));

function hearNow(which) {
  hear(which);
  if (!pairPlays()) startBoth(players[audible()].ended ? 0 : null);
}

function seekBoth(share) {
  const length = players[audible()].duration;
  if (Number.isFinite(length)) for (const player of players) player.currentTime = share * length;
}

function showPosition() {
  const player = players[audible()], share = player.duration ? player.currentTime / player.duration : 0, running = pairPlays();
  $("ab-seek").value = share;
  $("ab-time").textContent = player.duration ? `${player.currentTime.toFixed(1)} / ${clock(player.duration)}` : "";
  $("ab-play").setAttribute("aria-label", running ? "Pause" : "Play");
  $("ab-play").querySelector("path").setAttribute("d", running ? ICONS.pause : ICONS.play);
  sides.forEach((side, k) => placeHead(side.head, chosenSound(k)?.clip, players[k].duration ? clamp(player.currentTime / players[k].duration, 0, 1) : 0));
}

function followBoth() {
  showPosition();
  cancelAnimationFrame(pairFrame);
  if (pairPlays()) pairFrame = requestAnimationFrame(followBoth);
}

/* ---- blind test: X is one of the two, drawn anew after every answer ---- */

function startBlind() {
  const on = $("ab-blind").checked;
  [trials, right, isX] = [0, 0, drawX()];
  hearButtons[2].hidden = document.querySelector("#ab .guess").hidden = !on;
  $("ab-verdict").textContent = on ? "Listen to A, B and X, then say which one X is." : "";
  hear(on ? 2 : hearing === 2 ? 0 : hearing);
}

const drawX = () => (Math.random() < 0.5 ? 0 : 1);

function judge(guess) {
  trials++;
  if (guess === isX) right++;
  $("ab-verdict").textContent = `${guess === isX ? "Right" : "Wrong"}: X was ${NAMES[isX]}. ${right} of ${trials} right; who only guesses does at least as well in ${Math.round(100 * byChance(right, trials))}% of cases. X has been drawn anew.`;
  isX = drawX();
  hear(2);
}

/** The probability of at least `hits` right answers among `of` guesses. */
function byChance(hits, of) {
  let ways = 1, sum = 0;
  for (let k = 0; k <= of; k++) {
    if (k >= hits) sum += ways;
    ways = (ways * (of - k)) / (k + 1);
  }
  return sum / 2 ** of;
}

function abKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  if (event.key === " " && event.target.matches("button:not(#ab-play), input[type=checkbox]")) return;
  const act = {
    " ": startOrStop,
    a: () => hearNow(0),
    b: () => hearNow(1),
    x: () => hearNow($("ab-blind").checked ? 2 : 1 - hearing),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function listenToPair() {
  document.querySelector("#ab .sides").append(...sides.map((side) => side.node));
  document.querySelector("#ab .hear").append(...hearButtons);
  hearButtons.forEach((button, i) => button.addEventListener("click", () => hearNow(i)));
  sides.forEach((side, k) => {
    side.choice.addEventListener("change", () => takeSound(k));
    side.picture.addEventListener("click", (event) => { seekBoth(clickedShare(event, side.picture, chosenSound(k).clip)); hearNow(k); });
  });
  players.forEach((player, k) => {
    for (const name of ["play", "pause", "seeked", "durationchange"]) player.addEventListener(name, followBoth);
    player.addEventListener("ended", () => k === audible() && ($("loop").checked ? startBoth(0) : stopBoth()));
  });
  $("ab-play").addEventListener("click", startOrStop);
  $("ab-seek").addEventListener("input", () => seekBoth(Number($("ab-seek").value)));
  $("ab-match").addEventListener("change", matchLoudness);
  $("ab-blind").addEventListener("change", startBlind);
  document.querySelectorAll("#ab .guess button").forEach((button) => button.addEventListener("click", () => judge(Number(button.dataset.guess))));
  $("ab-close").addEventListener("click", () => $("ab").close());
  $("ab").addEventListener("close", stopBoth);
  $("ab").addEventListener("keydown", abKey);
}

listenToPair();
