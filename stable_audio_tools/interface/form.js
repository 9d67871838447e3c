// The form of a model, built from what the server says is asked for. `props.value` is JSON: the value of each entry by its name.
// Entries that two models share keep their values when the model changes.
const SVG = 'http://www.w3.org/2000/svg';
const GROUPS = {
  more: 'More conditions', guidance: 'More on guidance', sampler: 'Sampler', start: 'Start from a sound', inpaint: 'Change a part of a sound', adapters: 'Adapters',
};
const OPEN = ['inpaint', 'adapters'];
const WIDTH = 1000, HEIGHT = 96;
const root = element.querySelector('.sat-form');
let controls = {};
let sounds = {};

const make = (tag, settings = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), settings);
  node.append(...children);
  return node;
};
const shape = (tag, attributes) => {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const idOf = (name) => `set-${name.replace(/[^A-Za-z0-9]/g, '-')}`;
const place = (path) => 'gradio_api/file=' + path.split('/').map(encodeURIComponent).join('/');
const values = () => Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, control.read()]));

function commit() {
  props.value = JSON.stringify(values());
}

function changed(name) {
  commit();
  if (name === 'seconds' || name === 'inpaint_audio') controls.region?.redraw();
}

const listen = (node, name) => node.addEventListener('input', () => changed(name));

function textControl(entry) {
  const area = make('textarea', { id: idOf(entry.name), rows: entry.wide ? 2 : 1, value: entry.default ?? '' });
  area.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    document.querySelector('#go').click();
  });
  listen(area, entry.name);
  return { nodes: [area], read: () => area.value, write: (value) => { area.value = value ?? ''; } };
}

function numberControl(entry) {
  const whole = entry.kind === 'whole';
  const range = entry.low !== null && entry.high !== null;
  const slides = range && !entry.blank && !['seconds', 'seed'].includes(entry.name);
  const step = whole ? 1 : range ? 10 ** Math.floor(Math.log10((entry.high - entry.low) / 100)) : 'any';
  const ends = { min: entry.low ?? '', max: entry.high ?? '' };
  const number = make('input', { type: 'number', id: idOf(entry.name), ...ends, step: whole ? 1 : 'any', placeholder: entry.blank ? 'default' : '' });
  const slider = slides ? make('input', { type: 'range', ...ends, step, tabIndex: -1, ariaHidden: 'true' }) : null;
  const write = (value) => {
    number.value = value ?? '';
    if (slider) slider.value = number.value;
  };
  write(entry.default);
  number.addEventListener('input', () => {
    if (slider) slider.value = number.value;
    changed(entry.name);
  });
  slider?.addEventListener('input', () => {
    number.value = slider.value;
    changed(entry.name);
  });
  // What a browser cannot read as a number it gives as nothing; "?" keeps it from passing for a blank.
  const read = () => (number.value !== '' ? Number(number.value) : number.validity.badInput ? '?' : null);
  return { nodes: slider ? [make('div', { className: 'sat-slider' }, slider, number)] : [number], read, write };
}

function choiceControl(entry) {
  const select = make('select', { id: idOf(entry.name) }, ...entry.choices.map((choice) => make('option', { textContent: choice })));
  const write = (value) => {
    const index = entry.choices.indexOf(value);
    if (index >= 0) select.selectedIndex = index;
  };
  write(entry.default);
  listen(select, entry.name);
  return { nodes: [select], read: () => entry.choices[select.selectedIndex], write };
}

function flagControl(entry) {
  const box = make('input', { type: 'checkbox', id: idOf(entry.name), checked: entry.default });
  listen(box, entry.name);
  return { nodes: [box], read: () => box.checked, write: (value) => { box.checked = value; } };
}

function audioControl(entry) {
  let path = null;
  const file = make('input', { type: 'file', id: idOf(entry.name), accept: 'audio/*', className: 'sat-hidden' });
  const pick = make('button', { type: 'button', textContent: 'Choose a file' });
  const said = make('span', { className: 'sat-help sat-grow', textContent: 'or drop it here' });
  const player = make('audio', { controls: true, preload: 'metadata', hidden: true });
  const remove = make('button', { type: 'button', textContent: 'Remove', hidden: true });
  const write = (value) => {
    path = value ?? null;
    player.hidden = remove.hidden = !path;
    said.textContent = path ? path.split('/').pop() : 'or drop it here';
    if (path) player.src = place(path);
    else { player.removeAttribute('src'); file.value = ''; }
  };
  const send = async (chosen) => {
    if (!chosen) return;
    said.textContent = `sending ${chosen.name}`;
    try {
      write((await upload(chosen)).path);
    } catch (error) {
      write(null);
      said.textContent = `this could not be sent: ${error.message || error}`;
    }
    changed(entry.name);
  };
  const box = make('div', { className: 'sat-sound' }, make('div', { className: 'sat-line' }, file, pick, said, remove), player);
  pick.addEventListener('click', () => file.click());
  file.addEventListener('change', () => send(file.files[0]));
  remove.addEventListener('click', () => { write(null); changed(entry.name); });
  box.addEventListener('dragover', (event) => event.preventDefault());
  box.addEventListener('drop', (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });
  return { nodes: [box], read: () => path, write };
}

function regionControl(entry) {
  // A part is chosen over the waveform by dragging, or by two numbers of seconds.
  let state = { seconds: 1, sound: 0, peaks: [], start: null, end: null };
  let held = null, asked = 0;
  const svg = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': 'Waveform; drag to choose the part to make anew' });
  const field = (label, id) => make('input', { type: 'number', min: 0, step: 0.01, id, ariaLabel: `${label} of the part in seconds` });
  const from = field('start', `${idOf(entry.name)}-start`), to = field('end', `${idOf(entry.name)}-end`);
  const across = (seconds) => (seconds / state.seconds) * WIDTH;
  const draw = () => {
    const bars = state.peaks.map((peak, index) => {
      const x = across(state.sound * (index + 0.5) / state.peaks.length), half = Math.max(0.5, peak * HEIGHT / 2);
      return `M${x.toFixed(1)} ${(HEIGHT / 2 - half).toFixed(1)}V${(HEIGHT / 2 + half).toFixed(1)}`;
    }).join('');
    const thick = Math.max(1, across(state.sound) / Math.max(1, state.peaks.length));
    svg.replaceChildren(shape('path', { d: bars, stroke: '#b9a7e8', 'stroke-width': thick }));
    svg.append(shape('path', { d: `M${across(state.sound)} ${HEIGHT / 2}H${WIDTH}`, stroke: '#6b6680' }));
    if (state.start !== null && state.end > state.start) {
      const x = across(state.start), width = across(state.end - state.start);
      svg.append(shape('rect', { x, y: 0, width, height: HEIGHT, fill: '#f1605d', 'fill-opacity': 0.35 }));
      svg.append(shape('path', { d: `M${x} 0V${HEIGHT}M${x + width} 0V${HEIGHT}`, stroke: '#fcfdbf', 'stroke-width': 3 }));
    }
    if (document.activeElement !== from) from.value = state.start ?? '';
    if (document.activeElement !== to) to.value = state.end ?? '';
  };
  const choose = (start, end) => { state = { ...state, start, end }; draw(); };
  const second = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.round(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * state.seconds * 1000) / 1000;
  };
  svg.addEventListener('pointerdown', (event) => {
    // A press near an edge takes hold of that edge; elsewhere it begins a new part.
    const at = second(event), near = state.seconds * 0.015;
    held = at;
    if (state.start !== null && Math.abs(at - state.start) < near) held = state.end;
    else if (state.end !== null && Math.abs(at - state.end) < near) held = state.start;
    svg.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  svg.addEventListener('pointermove', (event) => {
    if (held !== null) choose(Math.min(held, second(event)), Math.max(held, second(event)));
  });
  svg.addEventListener('pointerup', () => { held = null; commit(); });
  const typed = (input) => (input.value === '' ? null : Number(input.value));
  for (const input of [from, to]) input.addEventListener('input', () => { choose(typed(from), typed(to)); commit(); });
  const redraw = async () => {
    const path = controls.inpaint_audio?.read() ?? null, seconds = controls.seconds?.read() || 1;
    const turn = ++asked;
    const answer = JSON.parse(await server.waveform({ path, seconds }));
    if (turn !== asked) return;
    tell(answer.problem || '');
    if (answer.problem) return;
    const same = path !== null && path === state.path && state.end !== null && state.end <= seconds;
    state = { ...answer, ...(same ? { start: state.start, end: state.end } : {}), path };
    draw();
    commit();
  };
  draw();
  const fields = make('div', { className: 'sat-line' }, make('label', {}, 'from ', from), make('label', {}, 'to ', to, ' s'));
  const hint = make('p', { className: 'sat-help', textContent: 'Drag over the waveform: what lies under red is made anew, the rest is kept.' });
  const read = () => (state.start === null || state.end === null ? null : { start: state.start, end: state.end });
  return { nodes: [make('div', { className: 'sat-region' }, svg, fields, hint)], read, write: () => {}, redraw };
}

const KINDS = { text: textControl, json: textControl, number: numberControl, whole: numberControl, choice: choiceControl, flag: flagControl, audio: audioControl, region: regionControl };

function field(entry) {
  const control = KINDS[entry.kind](entry);
  controls[entry.name] = { ...control, kind: entry.kind };
  const label = make('label', { htmlFor: idOf(entry.name), textContent: entry.label });
  if (entry.help) label.append(make('span', { className: 'sat-help', textContent: ` ${entry.help}` }));
  const wide = ['text', 'json', 'audio', 'region'].includes(entry.kind) ? ' sat-wide' : '';
  return make('div', { className: `sat-field${wide}` }, label, ...control.nodes);
}

function tell(problem) {
  const box = element.querySelector('.sat-problem');
  box.textContent = problem;
  box.hidden = !problem;
}

function build(spec) {
  const kept = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, { kind: control.kind, value: control.read() }]));
  const focused = document.activeElement?.id;
  tell(spec.problem || '');
  controls = {};
  root.dataset.model = spec.model || '';
  const grid = (entries) => make('div', { className: 'sat-grid' }, ...entries.map(field));
  const entries = spec.entries || [];
  const nodes = [make('p', { className: 'sat-facts', textContent: spec.facts || '' }), grid(entries.filter((entry) => entry.group === 'main'))];
  for (const [group, title] of Object.entries(GROUPS)) {
    const some = entries.filter((entry) => entry.group === group);
    if (some.length) nodes.push(make('details', { open: OPEN.includes(group) }, make('summary', { textContent: title }), grid(some)));
  }
  root.replaceChildren(...nodes);
  for (const [name, old] of Object.entries(kept)) {
    // What belongs to a model, such as its length and steps, comes from that model.
    const own = ['seconds', 'steps', 'cfg_scale', 'sampler'].includes(name);
    if (!own && controls[name]?.kind === old.kind && old.value !== null) controls[name].write(old.value);
  }
  if (focused?.startsWith('set-')) document.getElementById(focused)?.focus();
  controls.region?.redraw();
  commit();
}

window.addEventListener('sat-use', (event) => {
  // A result is to be used again: its seed, or its sound.
  const { name, value } = event.detail;
  if (!controls[name]) return;
  controls[name].write(value);
  changed(name);
  const node = document.getElementById(idOf(name));
  node.closest('details')?.setAttribute('open', '');
  node.scrollIntoView({ block: 'center' });
});

watch('spec', () => build(JSON.parse(props.spec)));
if (props.spec) build(JSON.parse(props.spec));
