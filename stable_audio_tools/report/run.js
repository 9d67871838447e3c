/* The page of one run. */

function showAge() {
  if (data.status !== "running") return;
  const minutes = Math.floor((Date.now() - Date.parse(data.updated)) / 60000);
  if (minutes >= 10) document.querySelector(".status").textContent = `running, but not heard of for ${minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`}`;
  document.querySelector(".reload").hidden = false;
  $("reload").checked = Boolean(choices.read().reload);
  $("reload").addEventListener("change", () => choices.write({ reload: $("reload").checked }));
  setInterval(() => $("reload").checked && audio.paused && !$("ab").open && location.reload(), 30000);
}

showCharts();
showDemos();
showSetup();
showAge();
showContents();
