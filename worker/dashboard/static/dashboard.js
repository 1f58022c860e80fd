// Tandem's dashboard: live parts, keys and selection. Every page works without it.
"use strict";

(() => {
  const INTERVAL = 2000; // milliseconds between two fetches of the live parts
  const hold = document.querySelector(".hold");
  let held = false;

  // Live parts: the page is fetched again, and its parts with an id and data-live are replaced if they have changed.
  const known = new Map();

  function isInUse(part) {
    return part.contains(document.activeElement) && document.activeElement.matches("input, select, button, summary")
      || part.querySelector("input:checked, details[open]") !== null;
  }

  async function refresh() {
    if (held || document.visibilityState !== "visible" || !document.querySelector("[data-live]")) return;
    try {
      const answer = await fetch(location.href, { headers: { "X-Fragment": "1" }, credentials: "same-origin" });
      if (answer.redirected || answer.status === 401 || answer.status === 403) { location.reload(); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const other = fresh.getElementById(part.id);
        if (!other || isInUse(part)) continue;
        const text = other.outerHTML;
        if (known.get(part.id) === text) continue;
        known.set(part.id, text);
        const here = document.activeElement && part.contains(document.activeElement) ? rowOf(document.activeElement) : -1;
        part.replaceWith(other);
        if (here >= 0) focusRow(here);
      }
      count();
      mark(false);
    } catch (error) {
      mark(true);
    }
  }

  function mark(stale) {
    if (!hold) return;
    hold.classList.toggle("is-stale", stale);
    hold.classList.toggle("is-held", held);
    hold.querySelector("span").textContent = held ? "Held" : stale ? "No answer" : "Live";
  }

  function toggle() {
    held = !held;
    mark(false);
    refresh();
  }

  if (hold) {
    hold.hidden = false;
    hold.addEventListener("click", toggle);
  }
  if (document.querySelector("[data-live]") && hold) {
    setInterval(refresh, INTERVAL);
    document.addEventListener("visibilitychange", refresh);
  }

  // Rows: j and k move, Enter opens, x selects.
  const rows = () => [...document.querySelectorAll("[data-rows] tbody tr")].filter((row) => row.querySelector(".row-link"));
  const rowOf = (element) => rows().indexOf(element.closest("tr"));
  function focusRow(number) {
    const all = rows();
    if (!all.length) return;
    const row = all[Math.max(0, Math.min(number, all.length - 1))];
    row.querySelector(".row-link").focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  let before = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
    const key = event.key;
    if (before === "g") {
      const link = document.querySelector(`.side nav a[data-key="${CSS.escape(key)}"]`);
      if (link) link.click();
      before = "";
      return;
    }
    before = key === "g" ? "g" : "";
    const at = document.activeElement ? rowOf(document.activeElement) : -1;
    if (key === "/") {
      const field = document.querySelector("[data-search]");
      if (field) { event.preventDefault(); field.focus(); field.select(); }
    } else if (key === "j") focusRow(at + 1);
    else if (key === "k") focusRow(at < 0 ? 0 : at - 1);
    else if (key === "x" && at >= 0) {
      const box = rows()[at].querySelector("input[type=checkbox]");
      if (box) box.click();
    } else if (key === ".") toggle();
    else if (key === "?") document.getElementById("keys").showModal();
  });

  // Selection: the bar with the actions appears with the first selected row. Live updates may replace all of it.
  const boxes = () => [...document.querySelectorAll("input[name=job]")];
  function count() {
    const selected = boxes().filter((box) => box.checked).length;
    const bar = document.querySelector("[data-act-bar]");
    const all = document.querySelector("[data-all]");
    if (bar) {
      bar.classList.toggle("is-empty", selected === 0);
      bar.querySelector("[data-selected]").textContent = `${selected} selected`;
    }
    if (all) {
      all.hidden = false;
      all.checked = selected > 0 && selected === boxes().length;
    }
  }
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-all]")) for (const box of boxes()) box.checked = event.target.checked;
    if (event.target.matches("[data-all], input[name=job]")) count();
  });
  count();

  document.addEventListener("click", (event) => {
    const sure = event.target.closest("[data-sure]");
    if (sure && !confirm(sure.dataset.sure)) event.preventDefault();
    const copy = event.target.closest("[data-copy]");
    if (copy && navigator.clipboard) {
      navigator.clipboard.writeText(copy.textContent).then(() => {
        copy.classList.add("is-copied");
        setTimeout(() => copy.classList.remove("is-copied"), 1200);
      }, () => {});
    }
    for (const open of document.querySelectorAll("details.confirm[open]")) {
      if (!open.contains(event.target)) open.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") for (const open of document.querySelectorAll("details.confirm[open]")) open.open = false;
  });

})();
