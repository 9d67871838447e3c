/* The setup: searching the documents of a run, the command that resumes it. */

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
