const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const WORDS = {
  failed: "failed", stale: "stale", waiting: "no value yet", paused: "paused", removed: "no longer updated",
  fresh: "up to date",
};
// The worst first.
const ORDER = ["failed", "stale", "waiting", "paused", "removed", "fresh"];

function span(seconds) {
  const [size, unit] = UNITS.find(([size]) => seconds >= size) || [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function kindOf({ updated, fresh_until, state, stale, error }, now) {
  if (error) return "failed";
  if (updated === null) return "waiting";
  if (["paused", "removed"].includes(state)) return state;
  return stale || (fresh_until !== null && now > fresh_until && state !== "running") ? "stale" : "fresh";
}

function promise({ fresh_until, state }, now) {
  if (fresh_until === null || ["paused", "removed"].includes(state)) return "";
  return now > fresh_until ? `late by ${span(now - fresh_until)}` : `fresh for ${span(fresh_until - now)} more`;
}

export function render({ model, el, view }) {
  const root = el.appendChild(document.createElement("div"));
  root.className = "health";
  const button = root.appendChild(document.createElement("button"));
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.append(...["dot", "text", "caret"].map((name) => {
    const part = document.createElement("span");
    part.className = name;
    return part;
  }));
  const [dot, text] = button.children;
  dot.setAttribute("aria-hidden", "true");
  text.setAttribute("role", "status");
  const list = root.appendChild(document.createElement("ul"));
  list.hidden = true;

  // The server is heard no more: what it said last may be true no longer.
  let gone = false;
  let ahead = 0;

  function say(kind, items, of) {
    const label = model.label ? model.label + ": " : "";
    if (gone) return label + "server gone";
    if (!items.length) return label + "nothing to show";
    const all = of.length === items.length ? (items.length === 1 ? "" : `all ${items.length} `) : `${of.length} of ${items.length} `;
    const words = label + all + WORDS[kind];
    return words.charAt(0).toUpperCase() + words.slice(1);
  }

  // A line stays the same while the list is open: a button made anew loses the focus, and a click that is half made.
  const lines = new Map();

  function make(item) {
    const line = document.createElement("li");
    for (const name of ["dot", "name", "state", "more"]) line.appendChild(document.createElement("span")).className = name;
    lines.set(item.number, line);
    return line;
  }

  function offer(item, line) {
    const run = line.appendChild(document.createElement("button"));
    run.type = "button";
    run.className = "run";
    run.addEventListener("click", () => {
      if (run.getAttribute("aria-disabled") === "false") model.send_msg({ run: item.number });
    });
    return run;
  }

  function row(item, kind, now) {
    const line = lines.get(item.number) ?? make(item);
    line.dataset.kind = kind;
    const part = (name, words, title = "") => {
      const cell = line.querySelector(`.${name}`);
      if (cell.textContent !== words) cell.textContent = words;
      if (cell.title !== title) cell.title = title;
      return cell;
    };
    part("name", item.name, item.name);
    part("state", item.updated === null ? WORDS.waiting : `${span(Math.max(0, now - item.updated))} old`,
         item.updated === null ? "" : new Date((item.updated + ahead) * 1000).toLocaleString());
    const more = { fresh: promise(item, now), stale: promise(item, now) || WORDS.stale, failed: item.error, waiting: "" };
    part("more", more[kind] ?? WORDS[kind], item.error);
    const run = line.querySelector(".run") ?? (item.run ? offer(item, line) : null);
    if (!item.run) run?.remove();
    else {
      part("run", item.run);
      run.setAttribute("aria-disabled", String(gone || item.run === "Running"));
      run.setAttribute("aria-label", `${item.run}: ${item.name}`);
    }
    return line;
  }

  function paint() {
    const now = Date.now() / 1000 - ahead;
    const items = model.told.items.map((item) => [item, kindOf(item, now)]);
    const kind = ORDER.find((each) => items.some(([, is]) => is === each)) || "fresh";
    root.dataset.kind = gone ? "gone" : kind;
    text.textContent = say(kind, items, items.filter(([, is]) => is === kind));
    if (!list.hidden) {
      items.sort(([one, a], [other, b]) => ORDER.indexOf(a) - ORDER.indexOf(b) || one.name.localeCompare(other.name));
      const shown = items.map(([item, is]) => row(item, is, now));
      if (shown.length !== list.children.length || shown.some((line, i) => line !== list.children[i])) {
        const focused = root.getRootNode().activeElement;
        list.replaceChildren(...shown);
        if (list.contains(focused)) focused.focus();
      }
    }
  }

  function open(is) {
    list.hidden = !is;
    button.setAttribute("aria-expanded", String(is));
    paint();
    if (is) {
      list.style.left = "0";
      const over = list.getBoundingClientRect().right + 12 - document.documentElement.clientWidth;
      list.style.left = `${-Math.max(0, over)}px`;
    }
  }

  function hear() {
    const [item] = model.told.items;
    if (item) ahead = Date.now() / 1000 - Math.max(...model.told.items.map((each) => each.now));
    gone = false;
    paint();
  }

  button.addEventListener("click", () => open(list.hidden));
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !list.hidden) {
      open(false);
      button.focus();
    }
  });
  const elsewhere = (event) => { if (!list.hidden && !event.composedPath().includes(root)) open(false); };
  document.addEventListener("click", elsewhere);

  hear();
  model.on("told", hear);
  model.on("label", paint);
  const timer = setInterval(paint, 1000);
  let there = true;
  model.on("remove", () => {
    there = false;
    clearInterval(timer);
    document.removeEventListener("click", elsewhere);
  });
  const page = view?.model?.document;
  const listen = (event, is) => {
    try {
      page?.on_event(event, () => { if (there) { gone = is; paint(); } });
    } catch {
      // An older Bokeh does not say so; the promised age does.
    }
  };
  listen("connection_lost", true);
  listen("client_reconnected", false);
}
