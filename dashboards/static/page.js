// Says so when the monitor stops answering: the page then shows the past, and must not look like the present.
"use strict";
(() => {
  const STALE_AFTER_MS = 12000;
  let answered = performance.now();
  const note = document.getElementById("stale");
  const age = document.getElementById("stale-age");
  const show = () => {
    const silent = performance.now() - answered;
    const stale = silent > STALE_AFTER_MS;
    document.body.classList.toggle("stale", stale);
    note.hidden = !stale;
    if (stale) {
      const text = silent < 120000 ? `${Math.floor(silent / 1000)} s old` : `${Math.floor(silent / 60000)} min old`;
      if (age.textContent !== text) age.textContent = text;
    }
  };
  document.body.addEventListener("htmx:afterSwap", () => { answered = performance.now(); show(); });
  window.setInterval(show, 1000);
})();
