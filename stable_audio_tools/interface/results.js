// What was made, newest first. Everything that people or files say enters as text, never as markup.
const list = element.querySelector('.sat-results');
const alertBox = element.querySelector('.sat-problem');
const KEPT = 20;
const place = (name) => 'gradio_api/file=' + props.root.split('/').map(encodeURIComponent).join('/') + '/' + name.split('/').map(encodeURIComponent).join('/');

const make = (tag, settings = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), settings);
  node.append(...children);
  return node;
};
const clock = (seconds) => `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
const said = (value) => {
  if (Array.isArray(value)) return value.map(said).join(', ');
  if (typeof value === 'object') return JSON.stringify(value);
  const text = String(value);
  return text.startsWith(props.root) ? text.split('/').pop() : text;  // a sound that was sent, or made, here
};

function download(url, name) {
  const link = make('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function formatButton(clip, form) {
  const button = make('button', { type: 'button', textContent: form.toUpperCase() });
  button.addEventListener('click', async () => {
    button.disabled = true;
    const answer = JSON.parse(await server.converted({ name: clip.audio, form }));
    button.disabled = false;
    if (answer.problem) return tell(answer.problem);
    download(place(answer.name), answer.name.split('/').pop());
  });
  return button;
}

function player(clip, siblings) {
  const audio = make('audio', { controls: true, preload: 'metadata', src: place(clip.audio) });
  const image = make('img', { src: place(clip.picture), alt: 'Spectrogram, time by frequency' });
  const needle = make('div', { className: 'sat-needle', hidden: true });
  const picture = make('div', { className: 'sat-picture', title: 'Click to hear it from there' }, image, needle);
  const [left, top, right, bottom] = clip.plot;
  Object.assign(needle.style, { top: `${top * 100}%`, bottom: `${(1 - bottom) * 100}%` });
  const follow = () => {
    needle.hidden = !audio.currentTime && audio.paused;
    needle.style.left = `${(left + (right - left) * Math.min(1, audio.currentTime / clip.seconds)) * 100}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener('play', () => {
    for (const other of document.querySelectorAll('.sat-results audio')) if (other !== audio) other.pause();
    follow();
  });
  audio.addEventListener('seeked', follow);
  picture.addEventListener('click', (event) => {
    const box = image.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - left) / (right - left);
    audio.currentTime = Math.max(0, Math.min(1, share)) * clip.seconds;
    audio.play();
  });
  siblings.push(audio);
  return [picture, audio];
}

function settingsTable(clip) {
  const rows = Object.entries(clip.settings).map(([key, value]) =>
    make('tr', {}, make('td', { textContent: key.replaceAll('_', ' ') }), make('td', { textContent: said(value) })));
  return make('details', {}, make('summary', { textContent: 'Settings' }), make('table', {}, ...rows));
}

function reuse(words, name, value) {
  const button = make('button', { type: 'button', textContent: words });
  button.addEventListener('click', () => {
    if (!document.getElementById(`set-${name.replace('_', '-')}`)) return tell('The model that is chosen now takes no such thing.');
    window.dispatchEvent(new CustomEvent('sat-use', { detail: { name, value } }));
  });
  return button;
}

function card(clip, siblings) {
  const name = clip.audio.split('/').pop();
  const wav = make('a', { href: place(clip.audio), download: name, textContent: 'WAV', className: 'sat-wav' });
  const words = make('span', { className: 'sat-grow', textContent: `seed ${clip.settings.seed} · ${clock(clip.seconds)}` });
  const line = make('div', { className: 'sat-line' }, words, wav, ...props.formats.map((form) => formatButton(clip, form)));
  const again = make('div', { className: 'sat-line' }, make('span', { className: 'sat-help', textContent: 'use again:' }), ...[
    reuse('this seed', 'seed', clip.settings.seed),
    reuse('vary it', 'init_audio', `${props.root}/${clip.audio}`),
    reuse('change a part', 'inpaint_audio', `${props.root}/${clip.audio}`),
  ]);
  const card = make('div', { className: 'sat-clip' }, ...player(clip, siblings), line);
  if (clip.remark) card.append(make('p', { className: 'sat-remark', textContent: clip.remark }));
  card.append(again, settingsTable(clip));
  return card;
}

function switcher(columns) {
  // From one column's player to the next one's, at the same place in time.
  const button = make('button', { type: 'button', textContent: 'Play the other from here', className: 'sat-switch' });
  button.addEventListener('click', () => {
    const all = columns.flatMap((players, column) => players.map((audio, row) => ({ audio, column, row })));
    const now = all.find((entry) => !entry.audio.paused) || all.find((entry) => entry.audio.currentTime > 0) || all[0];
    const next = columns[(now.column + 1) % columns.length][now.row];
    next.currentTime = now.audio.ended ? 0 : now.audio.currentTime;
    next.play();
  });
  return make('div', { className: 'sat-line' }, button);
}

function show(batch) {
  const players = batch.columns.map(() => []);
  const columns = batch.columns.map((column, index) => {
    const node = make('div', {}, make('h3', { textContent: column.title }));
    for (const note of column.notes) node.append(make('p', { className: 'sat-facts', textContent: note }));
    node.append(...column.clips.map((clip) => card(clip, players[index])));
    return node;
  });
  const prompt = batch.columns[0].clips[0]?.settings.prompt;
  const node = make('section', { className: 'sat-batch' });
  if (prompt) node.append(make('p', { className: 'sat-prompt', textContent: prompt }));
  node.append(make('div', { className: 'sat-columns' }, ...columns));
  if (columns.length > 1) node.append(switcher(players));
  list.querySelector('.sat-said')?.remove();
  list.prepend(node);
  const { top, bottom } = node.getBoundingClientRect();
  if (top > innerHeight || bottom < 0) node.scrollIntoView({ behavior: 'smooth', block: 'start' });
  while (list.children.length > KEPT) list.lastElementChild.remove();
}

function tell(problem) {
  alertBox.textContent = problem;
  alertBox.hidden = !problem;
  if (problem) alertBox.scrollIntoView({ block: 'nearest' });
}

let last = '';
watch('value', () => {
  if (!props.value || props.value === last) return;
  last = props.value;
  const news = JSON.parse(props.value);
  tell(news.problem || '');
  if (news.columns) show(news);
});
