// Filters, sorting and details of the report. Text from results only ever becomes text nodes: nothing here writes HTML.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const root = document.documentElement;

  // Theme: follow the system until told otherwise. Some browsers give pages opened from disk no storage.
  const themes = ["system", "light", "dark"];
  const store = (() => { try { return window.localStorage; } catch { return null; } })();
  const showTheme = (name) => {
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    $("theme").textContent = `Theme: ${name}`;
  };
  let theme = store?.getItem("harness-theme");
  if (!themes.includes(theme)) theme = "system";
  showTheme(theme);
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    store?.setItem("harness-theme", theme);
    showTheme(theme);
  });

  const table = $("cells");
  if (!table) return;
  const cells = [...table.querySelectorAll("tbody.cell")];
  const selects = [...document.querySelectorAll("select[data-filter]")];
  const box = $("q");
  const columns = [...table.tHead.querySelectorAll("th[scope]")];
  let sorted = null; // {column, down}

  const el = (tag, text, className) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (className) node.className = className;
    return node;
  };

  // Details, drawn when a row is first opened.
  const copyButton = (text, block) => {
    const button = el("button", "Copy", "copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      let copied = false;
      try {
        await navigator.clipboard.writeText(text);
        copied = true;
      } catch { // no permission, or no clipboard for pages opened from disk: select the text and try the old way
        getSelection().selectAllChildren(block);
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return button;
  };
  const sectionOf = ({ title, head, lines, bad }) => {
    const section = el("section");
    const grid = section.appendChild(el("table"));
    section.prepend(el("h4", title));
    const top = grid.createTHead().insertRow();
    for (const name of head) { const th = top.appendChild(el("th", name)); th.scope = "col"; }
    const body = grid.createTBody();
    lines.forEach((line, index) => {
      const row = body.insertRow();
      if (bad.includes(index)) row.className = "bad";
      for (const text of line) row.appendChild(el("td", text));
    });
    return section;
  };
  const panelOf = (item) => {
    const panel = el("div", null, "panel");
    panel.append(el("h3", item.id));
    if (item.sentence) panel.append(el("p", item.sentence));
    if (item.reason) panel.append(el("pre", item.reason));
    if (item.declared) {
      const declared = el("p");
      declared.append(el("strong", "Declared: "), item.declared);
      if (item.link) {
        const link = el("a", item.link);
        link.href = item.link;
        link.rel = "noopener noreferrer";
        declared.append(" ", link);
      }
      panel.append(declared);
    }
    const command = el("div", null, "command");
    const line = el("pre", item.reproduce);
    command.append(line, copyButton(item.reproduce, line));
    panel.append(el("h4", "Reproduce"), command);
    if (item.log) {
      const log = el("p", "Log: ");
      log.append(el("code", item.log));
      panel.append(log);
    }
    const sections = el("div", null, "sections");
    sections.append(...item.sections.map(sectionOf));
    panel.append(sections);
    return panel;
  };
  const toggle = (cell, want) => {
    const button = cell.querySelector(".open");
    let more = cell.querySelector("tr.more");
    const open = want ?? button.getAttribute("aria-expanded") !== "true";
    if (open && !more) {
      more = cell.insertRow();
      more.className = "more";
      more.id = `details-${cell.dataset.i}`;
      const holder = more.insertCell();
      holder.colSpan = columns.length + 1;
      holder.append(panelOf(data[cell.dataset.i]));
      button.setAttribute("aria-controls", more.id);
    }
    if (more) more.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  };
  table.addEventListener("click", (event) => {
    const row = event.target.closest("tr.row");
    if (!row || !getSelection().isCollapsed) return; // selecting text to copy it must not open the row
    toggle(row.parentElement);
    remember();
  });

  // Filters.
  const texts = new Map();
  const textOf = (cell) => {
    if (!texts.has(cell)) {
      const { id, reason, declared } = data[cell.dataset.i];
      texts.set(cell, [id, reason, declared, cell.rows[0].textContent].join(" ").toLowerCase());
    }
    return texts.get(cell);
  };
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value).map((select) => [select.dataset.filter, select.value]);
    let shown = 0;
    for (const cell of cells) {
      const match = wanted.every(([name, value]) => cell.dataset[name] === value) && words.every((word) => textOf(cell).includes(word));
      cell.hidden = !match;
      shown += match;
    }
    for (const select of selects) select.classList.toggle("set", select.value !== "");
    $("shown").textContent = `${shown} of ${cells.length}`;
    $("empty").hidden = shown > 0;
  };
  const choose = (name, value) => {
    const select = $(`f-${name}`);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  };
  const reset = () => {
    box.value = "";
    for (const select of selects) select.value = "";
  };
  const changed = () => { apply(); remember(); };
  box.addEventListener("input", changed);
  for (const select of selects) select.addEventListener("change", changed);
  $("bar").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", () => { reset(); changed(); box.focus(); });
  for (const button of document.querySelectorAll("[data-set-status], [data-set-stack]")) {
    button.addEventListener("click", () => {
      reset();
      if (button.dataset.setStatus) choose("status", button.dataset.setStatus);
      if (button.dataset.setStack) { choose("stack", button.dataset.setStack); choose("family", button.dataset.setFamily); choose("engine", button.dataset.setEngine); }
      changed();
      $("bar").parentElement.scrollIntoView();
    });
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); box.focus(); }
    if (event.key === "Escape" && event.target === box) { box.value = ""; changed(); }
  });

  // Sorting: up, down, and back to the report's own order. What was not measured is last either way.
  const sort = () => {
    const order = [...cells];
    if (sorted) {
      const keys = new Map(cells.map((cell) => [cell, cell.rows[0].cells[sorted.column + 1].dataset.k]));
      const numeric = [...keys.values()].every((key) => key === "" || !Number.isNaN(Number(key)));
      const sign = sorted.down ? -1 : 1;
      order.sort((a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? Number(x) - Number(y) : x < y ? -1 : Number(x > y));
      });
    }
    columns.forEach((th, index) => {
      if (sorted?.column === index) th.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    table.append(...order);
  };
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-sort]");
    if (!button) return;
    const column = Number(button.dataset.sort);
    if (sorted?.column !== column) sorted = { column, down: false };
    else sorted = sorted.down ? null : { column, down: true };
    sort();
    remember();
  });

  // What is chosen lives in the address, so that a view can be sent to somebody.
  const remember = () => {
    const state = new URLSearchParams();
    if (box.value) state.set("q", box.value);
    for (const select of selects) if (select.value) state.set(select.dataset.filter, select.value);
    if (sorted) state.set("sort", `${sorted.column}${sorted.down ? "-" : ""}`);
    for (const cell of cells) if (cell.querySelector(".open[aria-expanded=true]")) state.append("open", data[cell.dataset.i].id);
    history.replaceState(null, "", `#${state}`);
  };
  const recall = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    reset();
    box.value = state.get("q") ?? "";
    for (const select of selects) choose(select.dataset.filter, state.get(select.dataset.filter) ?? "");
    const [, column, down] = /^(\d+)(-?)$/.exec(state.get("sort") ?? "") ?? [];
    sorted = column !== undefined && Number(column) < columns.length ? { column: Number(column), down: down === "-" } : null;
    const open = new Set(state.getAll("open"));
    for (const cell of cells) if (open.has(data[cell.dataset.i].id)) toggle(cell, true);
    apply();
    sort();
  };
  window.addEventListener("hashchange", recall);

  // The table's head sticks below the bar, however many lines the bar needs.
  new ResizeObserver(() => root.style.setProperty("--bar-height", `${$("bar").offsetHeight}px`)).observe($("bar"));
  recall();
})();
