// A waveform over which a part is chosen, by dragging or by two numbers of seconds.
const NAMESPACE = 'http://www.w3.org/2000/svg';
const WIDTH = 1000, HEIGHT = 96;
const svg = element.querySelector('svg');
const [from, to] = element.querySelectorAll('input');
let state = { seconds: 1, sound: 0, peaks: [], start: null, end: null };
let anchor = null;

const shape = (tag, attributes) => {
  const node = document.createElementNS(NAMESPACE, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const across = (seconds) => (seconds / state.seconds) * WIDTH;

function draw() {
  const bars = state.peaks.map((peak, index) => {
    const x = across(state.sound * (index + 0.5) / state.peaks.length), half = Math.max(0.5, peak * HEIGHT / 2);
    return `M${x.toFixed(1)} ${(HEIGHT / 2 - half).toFixed(1)}V${(HEIGHT / 2 + half).toFixed(1)}`;
  }).join('');
  svg.replaceChildren(shape('path', { d: bars, stroke: '#b9a7e8', 'stroke-width': Math.max(1, across(state.sound) / Math.max(1, state.peaks.length)) }));
  if (state.sound < state.seconds) {
    svg.append(shape('rect', { x: across(state.sound), y: HEIGHT / 2 - 0.5, width: WIDTH - across(state.sound), height: 1, fill: '#6b6680' }));
  }
  if (state.start !== null && state.end > state.start) {
    const box = { x: across(state.start), y: 0, width: across(state.end - state.start), height: HEIGHT };
    svg.append(shape('rect', { ...box, fill: '#f1605d', 'fill-opacity': 0.35, class: 'sat-chosen' }));
    svg.append(shape('path', { d: `M${box.x} 0V${HEIGHT}M${box.x + box.width} 0V${HEIGHT}`, stroke: '#fcfdbf', 'stroke-width': 2 }));
  }
  from.max = to.max = state.seconds;
  if (document.activeElement !== from) from.value = state.start ?? '';
  if (document.activeElement !== to) to.value = state.end ?? '';
}

function choose(start, end, done) {
  state = { ...state, start, end };
  draw();
  if (done) props.value = JSON.stringify(state);
}

const second = (event) => {
  const box = svg.getBoundingClientRect();
  const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  return Math.round(share * state.seconds * 1000) / 1000;
};
svg.addEventListener('pointerdown', (event) => {
  // A press near an edge takes hold of that edge; elsewhere it begins a new part.
  const at = second(event), near = state.seconds * 0.015;
  anchor = at;
  if (state.start !== null && Math.abs(at - state.start) < near) anchor = state.end;
  else if (state.start !== null && Math.abs(at - state.end) < near) anchor = state.start;
  svg.setPointerCapture(event.pointerId);
  event.preventDefault();
});
svg.addEventListener('pointermove', (event) => {
  if (anchor !== null) choose(Math.min(anchor, second(event)), Math.max(anchor, second(event)), false);
});
svg.addEventListener('pointerup', () => {
  anchor = null;
  choose(state.start, state.end, true);
});
for (const input of [from, to]) {
  input.addEventListener('change', () => {
    const read = (field) => (field.value === '' ? null : Number(field.value));
    choose(read(from), read(to), true);
  });
}

watch('value', () => {
  if (!props.value) return;
  state = JSON.parse(props.value);
  draw();
});
if (props.value) state = JSON.parse(props.value);
draw();
