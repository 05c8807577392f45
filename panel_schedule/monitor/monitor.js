const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
// The worst first.
const ORDER = ["failed", "stale", "waiting", "running", "queued", "paused", "removed", "unused", "fresh"];
const BAD = ["failed", "stale", "waiting"];
const WORDS = {
  failed: "failing", stale: "stale", waiting: "without a value", running: "running", queued: "queued",
  paused: "paused", removed: "no longer updated", unused: "not used yet", fresh: "well",
};
const KINDS = { task: "task", job: "background", memo: "memoized" };
const SVG = "http://www.w3.org/2000/svg";

function span(seconds) {
  const [size, unit] = UNITS.find(([size]) => seconds >= size) || [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function took(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.00005) return "< 0.1 ms";
  if (seconds < 0.0995) return `${(seconds * 1000).toPrecision(2)} ms`;
  return seconds < 99.5 ? `${seconds.toPrecision(2)} s` : span(seconds);
}

function kindOf({ kind, updated, until, state, stale, error }, now) {
  if (error) return "failed";
  if (["paused", "removed"].includes(state)) return state;
  if (kind === "task" && updated === null && !["running", "queued"].includes(state)) return "waiting";
  if (stale || (until !== null && now > until && state !== "running")) return "stale";
  if (["running", "queued"].includes(state)) return state;
  return updated === null ? "unused" : "fresh";
}

function age({ updated }, now) {
  return updated === null ? "" : span(Math.max(0, now - updated));
}

function promise({ until, state, stale }, now) {
  if (until === null || ["paused", "removed"].includes(state)) return "";
  return now > until ? `late by ${span(now - until)}` : stale ? "" : `fresh for ${span(until - now)}`;
}

function countdown({ next }, now) {
  if (next === null) return "";
  return next > now ? `in ${span(next - now)}` : "due";
}

function doing({ state, percent, message }) {
  return [state === "running" && percent >= 0 ? `${percent} %` : "", message].filter(Boolean).join(" ");
}

function make(tag, name, words = "", parent = null) {
  const part = document.createElement(tag);
  if (name) part.className = name;
  if (words) part.textContent = words;
  parent?.append(part);
  return part;
}

// What is the same is left alone: a text that somebody selects stays selected.
function say(part, words) {
  if (part.textContent !== words) part.textContent = words;
}

function sparkline(durations, width, height) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("aria-hidden", "true");
  if (!durations.length) return svg;
  const most = Math.max(...durations.map(([seconds]) => seconds), 1e-9);
  const step = durations.length > 1 ? (width - 6) / (durations.length - 1) : 0;
  const points = durations.map(([seconds], i) => [3 + i * step, height - 3 - (seconds / most) * (height - 6)]);
  const line = svg.appendChild(document.createElementNS(SVG, "polyline"));
  line.setAttribute("points", points.map((point) => point.map((each) => each.toFixed(1)).join(",")).join(" "));
  durations.forEach(([, well], i) => {
    if (well && i < durations.length - 1) return;
    const dot = svg.appendChild(document.createElementNS(SVG, "circle"));
    dot.setAttribute("cx", points[i][0].toFixed(1));
    dot.setAttribute("cy", points[i][1].toFixed(1));
    dot.setAttribute("r", 2);
    if (!well) dot.setAttribute("class", "failed");
  });
  return svg;
}

const last = ({ durations }) => durations.length ? durations[durations.length - 1][0] : null;

// What a column says, what it is sorted by, and whether its larger values come first.
const COLUMNS = [
  { name: "state", title: "State", by: (row, now) => ORDER.indexOf(kindOf(row, now)) },
  { name: "name", title: "Name", by: (row) => row.name },
  { name: "schedule", title: "Schedule", by: (row) => row.schedule },
  { name: "age", title: "Age", by: (row) => row.updated ?? 0 },
  { name: "next", title: "Next run", by: (row) => row.next ?? Infinity },
  { name: "took", title: "Took", by: (row) => -(last(row) ?? -1) },
  { name: "failures", title: "Failures", by: (row) => -row.failures },
  { name: "viewers", title: "Viewers", by: (row) => -(row.viewers ?? -1) },
];

const TABS = ["Functions", "Timeline", "Graph", "Workers"];

// What stands in another tab the server puts below this.
function tabs(model, root) {
  const list = make("nav", "", "", root);
  list.setAttribute("role", "tablist");
  const buttons = TABS.map((name) => {
    const button = make("button", "", name, list);
    button.type = "button";
    button.setAttribute("role", "tab");
    button.addEventListener("click", () => { model.tab = name; });
    return button;
  });
  list.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    model.tab = TABS[(TABS.indexOf(model.tab) + step + TABS.length) % TABS.length];
    buttons[TABS.indexOf(model.tab)].focus();
  });
  const turn = () => {
    root.dataset.tab = model.tab;
    TABS.forEach((name, i) => {
      buttons[i].setAttribute("aria-selected", String(name === model.tab));
      buttons[i].tabIndex = name === model.tab ? 0 : -1;
    });
  };
  model.on("tab", turn);
  turn();
}

export function render({ model, el, view }) {
  const root = el.appendChild(make("div", "monitor"));
  root.classList.toggle("dark", model.dark);
  tabs(model, root);
  const head = make("header", "", "", root);
  const headline = make("h2", "", "Looking ...", head);
  headline.setAttribute("role", "status");
  const chips = make("div", "chips", "", head);
  const tools = make("div", "tools", "", head);
  const filter = make("input", "", "", tools);
  filter.type = "search";
  filter.placeholder = "Filter (press /)";
  filter.setAttribute("aria-label", "Filter by name, schedule or error");
  const kinds = make("select", "", "", tools);
  kinds.setAttribute("aria-label", "Kind of function");
  for (const [value, words] of [["", "all kinds"], ...Object.entries(KINDS)]) make("option", "", words, kinds).value = value;
  const note = make("p", "note", "", root);
  note.setAttribute("role", "alert");
  const table = make("table", "", "", root);
  const heads = make("tr", "", "", make("thead", "", "", table));
  const body = make("tbody", "", "", table);
  const foot = make("p", "foot", "", root);
  const dialog = make("dialog", "", "", root);

  const rows = new Map();
  let sort = "state", reversed = false, only = "", gone = false, ahead = 0, general = null, told = "";
  // Of the function that is looked at from near; and of its run, if it is one run.
  let near = null, found = null, one = null;
  // What of it is drawn, as text; and whether an answer is awaited of what is under way.
  let drawn = "", awaited = false;

  const clock = () => Date.now() / 1000 - ahead;

  // ---------------------------------------------------------------- the table

  for (const { name, title } of COLUMNS) {
    const cell = make("th", name, "", heads);
    cell.scope = "col";
    const button = make("button", "", title, cell);
    button.type = "button";
    button.addEventListener("click", () => {
      reversed = sort === name && !reversed;
      sort = name;
      paint();
    });
  }

  function enter(data) {
    let row = rows.get(data.id);
    if (!row) {
      const line = document.createElement("tr");
      line.tabIndex = 0;
      const cells = Object.fromEntries(COLUMNS.map(({ name, title }) => {
        const cell = make("td", name, "", line);
        cell.dataset.label = title;
        return [name, cell];
      }));
      make("span", "dot", "", cells.state).setAttribute("aria-hidden", "true");
      make("span", "words", "", cells.state);
      make("span", "title", "", cells.name);
      make("span", "kind", KINDS[data.kind], cells.name);
      make("span", "more", "", cells.name);
      make("span", "words", "", cells.age);
      make("span", "sub", "", cells.age);
      make("span", "words", "", cells.took);
      make("span", "spark", "", cells.took);
      row = { line, cells, drawn: "" };
      line.addEventListener("click", () => open(data.id));
      rows.set(data.id, row);
    }
    row.data = data;
    const { cells } = row, part = (cell, name) => cells[cell].querySelector(`.${name}`);
    row.line.classList.toggle("task", data.kind === "task");
    say(part("name", "title"), data.name);
    part("name", "title").title = data.name;
    say(cells.schedule, data.schedule);
    say(cells.failures, data.failures ? String(data.failures) : "");
    say(cells.viewers, data.viewers ? String(data.viewers) : "");
    const more = data.error || doing(data);
    say(part("name", "more"), more);
    part("name", "more").title = more;
    part("name", "more").classList.toggle("bad", data.error !== "");
    say(part("took", "words"), took(last(data)));
    const drawing = JSON.stringify(data.durations);
    if (drawing !== row.drawn) {
      row.drawn = drawing;
      part("took", "spark").replaceChildren(...(data.durations.length > 1 ? [sparkline(data.durations, 64, 18)] : []));
    }
  }

  function tick(row, now) {
    const { data, cells, line } = row;
    const kind = kindOf(data, now);
    row.kind = kind;
    if (line.dataset.kind !== kind) line.dataset.kind = kind;
    say(cells.state.lastChild, WORDS[kind]);
    say(cells.age.firstChild, age(data, now));
    say(cells.age.lastChild, promise(data, now));
    const at = data.updated === null ? "" : new Date((data.updated + ahead) * 1000).toLocaleString();
    if (cells.age.title !== at) cells.age.title = at;
    say(cells.next, countdown(data, now));
  }

  function matches({ data, kind }) {
    const text = filter.value.trim().toLowerCase();
    return (!only || kind === only) && (!kinds.value || data.kind === kinds.value)
      && (!text || `${data.name}\n${data.schedule}\n${data.error}`.toLowerCase().includes(text));
  }

  function paint() {
    const now = clock();
    const all = [...rows.values()];
    for (const row of all) tick(row, now);
    const { by } = COLUMNS.find(({ name }) => name === sort);
    const keyed = all.filter(matches).map((row) => [by(row.data, now), row]);
    keyed.sort(([a, one], [b, other]) => (
      (a < b ? -1 : a > b ? 1 : 0) * (reversed ? -1 : 1)
      || ORDER.indexOf(one.kind) - ORDER.indexOf(other.kind) || one.data.name.localeCompare(other.data.name)
    ));
    const shown = keyed.map(([, row]) => row.line);
    if (shown.length !== body.children.length || shown.some((line, i) => line !== body.children[i])) {
      const focused = root.getRootNode().activeElement;
      body.replaceChildren(...shown);
      if (focused && body.contains(focused)) focused.focus();
    }
    COLUMNS.forEach(({ name }, i) => {
      const order = name !== sort ? "none" : reversed ? "descending" : "ascending";
      heads.children[i].setAttribute("aria-sort", order);
    });
    summarize(all, shown.length);
    if (near !== null) nearTick(now);
  }

  function summarize(all, shown) {
    const counts = ORDER.map((kind) => [kind, all.filter((row) => row.kind === kind).length]).filter(([, n]) => n);
    const bad = counts.filter(([kind]) => BAD.includes(kind));
    const words = bad.map(([kind, n], i) => i ? `${n} ${WORDS[kind]}` : `${n} of ${all.length} ${WORDS[kind]}`).join(", ");
    say(headline, gone ? "The server is gone" : general === null ? "Looking ..." : !all.length ? "Nothing is scheduled" : words || `All ${all.length} are well`);
    root.dataset.kind = gone ? "gone" : bad.length ? bad[0][0] : "fresh";
    const text = JSON.stringify([counts, only]);
    if (text !== chips.dataset.text) {
      chips.dataset.text = text;
      const focused = root.getRootNode().activeElement?.dataset?.only;
      chips.replaceChildren(...counts.map(([kind, n]) => {
        const chip = make("button", "chip");
        chip.type = "button";
        chip.dataset.kind = chip.dataset.only = kind;
        chip.setAttribute("aria-pressed", String(only === kind));
        make("span", "dot", "", chip).setAttribute("aria-hidden", "true");
        make("span", "", `${n} ${WORDS[kind]}`, chip);
        chip.addEventListener("click", () => { only = only === kind ? "" : kind; paint(); });
        return chip;
      }));
      if (focused) [...chips.children].find((chip) => chip.dataset.only === focused)?.focus();
    }
    say(note, [general?.trouble, told].filter(Boolean).join(" "));
    const waits = Object.entries(general?.waiting ?? {}).filter(([, n]) => n).map(([kind, n]) => `${n} ${kind} runs wait for a place`);
    const hangs = general?.hanging?.length ? [`These hang: ${general.hanging.join(", ")}`] : [];
    const hidden = shown < all.length ? [`${shown} of ${all.length} shown`] : [];
    const seen = general?.process ? [`seen from process ${general.process}`] : [];
    say(foot, [...hidden, ...waits, ...hangs, model.why_not, ...seen].filter(Boolean).join(" · "));
  }

  // ---------------------------------------------------------------- one function, from near

  const close = make("button", "close", "×");
  close.type = "button";
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => dialog.close());
  const top = make("div", "top", "", dialog);
  const title = make("h3", "", "", top);
  top.append(close);
  dialog.setAttribute("aria-label", "One function");
  const state = make("p", "state", "", dialog);
  make("span", "dot", "", state);
  const stateWords = make("span", "words", "", state);
  const error = make("p", "bad", "", dialog);
  const buttons = make("div", "buttons", "", dialog);
  const answer = make("p", "answer", "", dialog);
  answer.setAttribute("role", "status");
  const rest = make("div", "rest", "", dialog);

  const ACTIONS = {
    refresh: ["Run now", "task", () => true],
    pause: ["Pause", "task", ({ state }) => state !== "paused"],
    resume: ["Resume", "task", ({ state }) => state === "paused"],
    cancel: ["Cancel", "task", ({ state }) => ["running", "queued"].includes(state)],
    "cancel all": ["Cancel all", "job", ({ state }) => ["running", "queued"].includes(state)],
    invalidate: ["Invalidate", "memo", () => true],
  };
  const actions = Object.entries(ACTIONS).map(([name, [words, kind, fits]]) => {
    const button = make("button", "", words, buttons);
    button.type = "button";
    button.addEventListener("click", () => ask(name === "cancel all" ? "cancel" : name));
    return { button, kind, fits };
  });
  const form = make("form", "", "", buttons);
  const when = make("input", "", "", form);
  when.placeholder = "15m, or 0 6 * * mon-fri";
  when.setAttribute("aria-label", "New schedule: a period or a cron expression");
  make("button", "", "Reschedule", form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (when.value.trim()) ask("reschedule", { given: when.value.trim() });
  });

  function ask(action, given = {}) {
    say(answer, "...");
    model.send_msg({ do: action, id: near, ...given });
  }

  function clear() {
    rest.replaceChildren();
    drawn = "";
  }

  // Whether this is not what is drawn: what is the same is left alone here, too.
  function isNew(...shown) {
    const text = JSON.stringify(shown);
    if (text === drawn) return false;
    drawn = text;
    return true;
  }

  const isLive = () => Boolean(one === null ? found?.live?.length : rest.querySelector(".run")?.dataset.live);

  // What a run does is no news of its function.
  function follow() {
    if (gone || awaited || near === null || !isLive()) return;
    awaited = true;
    model.send_msg(one === null ? { ask: "detail", id: near } : { ask: "run", id: near, run: one });
  }

  function open(id) {
    near = id;
    found = one = null;
    say(answer, "");
    when.value = "";
    clear();
    model.send_msg({ ask: "detail", id });
    nearTick(clock());
    if (!dialog.open) dialog.showModal();
  }

  function openRun(run) {
    one = run;
    say(answer, "");
    clear();
    model.send_msg({ ask: "run", id: near, run });
    nearTick(clock());
  }

  function back() {
    const run = one;
    one = null;
    nearTick(clock());
    showDetail();
    (rest.querySelector(`tr[data-run="${run}"]`) ?? dialog).focus();
  }

  // Escape leads back first.
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && one !== null) { event.preventDefault(); back(); }
  });
  dialog.addEventListener("close", () => {
    rows.get(near)?.line.focus();
    near = null;
  });
  // A click beside it closes it.
  dialog.addEventListener("click", (event) => { if (event.composedPath()[0] === dialog) dialog.close(); });

  function nearTick(now) {
    const row = rows.get(near);
    if (!row) { dialog.close(); return; }
    const { data } = row, kind = kindOf(data, now);
    say(title, data.name);
    state.dataset.kind = kind;
    const fresh = promise(data, now), next = countdown(data, now), count = data.failures;
    const failed = count > 1 ? `failed ${count} times in a row` : count ? "failed once" : "";
    say(stateWords, [
      `${KINDS[data.kind]}, ${WORDS[kind]}`, doing(data), data.schedule, data.updated === null ? "" : `${age(data, now)} old`,
      fresh, next && `next ${next}`, failed,
    ].filter(Boolean).join(" · "));
    say(error, one === null ? data.error : "");
    for (const { button, kind, fits } of actions) button.hidden = model.why_not !== "" || kind !== data.kind || !fits(data);
    form.hidden = model.why_not !== "" || data.kind !== "task";
    buttons.dataset.why = model.why_not;
  }

  // Without the day where that is today.
  function local(seconds) {
    if (seconds === null) return "";
    const at = new Date((seconds + ahead) * 1000);
    return at.toDateString() === new Date().toDateString() ? at.toLocaleTimeString() : at.toLocaleString();
  }

  function listing(titles, lines) {
    const wrapper = make("div", "scroll");
    const listed = make("table", "", "", wrapper);
    const first = make("tr", "", "", make("thead", "", "", listed));
    for (const each of titles) make("th", "", each, first).scope = "col";
    const content = make("tbody", "", "", listed);
    for (const [{ state, run }, ...cells] of lines) {
      const line = make("tr", "", "", content);
      line.dataset.kind = state;
      line.dataset.run = run;
      line.tabIndex = 0;
      line.addEventListener("click", () => { if (getSelection().isCollapsed) openRun(run); });
      for (const each of cells) make("span", "", each, make("td", "", "", line));
    }
    content.addEventListener("keydown", walk);
    return wrapper;
  }

  function section(words, ...parts) {
    const part = make("section");
    make("h4", "", words, part);
    part.append(...parts);
    return part;
  }

  function showDetail() {
    const { data } = rows.get(near) || {};
    if (!data || !found || !isNew(found, data.durations)) return;
    const parts = [];
    const focused = root.getRootNode().activeElement?.dataset?.run;
    if (found.next.length) {
      const list = make("ol");
      for (const { text } of found.next) make("li", "", text, list);
      parts.push(section("Next", list));
    }
    if (found.live?.length) {
      const users = found.live.some(({ user }) => user), words = found.live.some(({ message }) => message);
      const lines = found.live.map((run) => [
        run, run.state, local(run.at), run.percent >= 0 ? `${run.percent} %` : "",
        ...(words ? [run.message] : []), ...(users ? [run.user ?? ""] : []),
      ]);
      const titles = ["State", "Since", "Done", ...(words ? ["Message"] : []), ...(users ? ["User"] : [])];
      parts.push(section("Under way", listing(titles, lines)));
    }
    if (data.durations.length > 1) parts.push(section("Durations", sparkline(data.durations, 320, 48)));
    if (found.runs.length) {
      const again = found.runs.some(({ attempt }) => attempt > 1);
      const lines = found.runs.map((run) => [
        run, local(run.at), run.state.replace("_", " "), took(run.duration), ...(again ? [String(run.attempt)] : []),
        run.error || run.reason,
      ]);
      const titles = ["At", "Ended", "Took", ...(again ? ["Attempts"] : []), "Why"];
      parts.push(section("Last runs, in your time zone", listing(titles, lines)));
    }
    parts.push(section("About", listOf(found.facts)));
    rest.replaceChildren(...parts);
    if (focused) rest.querySelector(`tr[data-run="${focused}"]`)?.focus();
  }

  function listOf(facts) {
    const list = make("dl");
    for (const [name, text] of facts) {
      make("dt", "", name, list);
      make("dd", "", text, list);
    }
    return list;
  }

  function showRun(run) {
    if (!isNew(run)) return;
    const top = make("p", "state run");
    const button = make("button", "back", "Back", top);
    button.type = "button";
    button.addEventListener("click", back);
    top.dataset.kind = run.state;
    if (run.live) top.dataset.live = "yes";
    make("span", "dot", "", top).setAttribute("aria-hidden", "true");
    make("span", "words", [
      run.state.replace("_", " "), run.percent >= 0 ? `${run.percent} %` : "", run.message, took(run.duration),
      run.attempt > 1 ? `attempt ${run.attempt}` : "",
    ].filter(Boolean).join(" · "), top);
    const parts = [top];
    const why = run.error || run.reason;
    if (why) parts.push(make("p", run.error ? "bad" : "", why));
    const facts = [...run.times.map(([name, at]) => [name, local(at)]), ["Process", run.owner], ["User", run.user]];
    if (run.arguments) parts.push(section("Called with", make("pre", "lines", run.arguments)));
    parts.push(section("About this run", listOf(facts.filter(([, text]) => text))));
    if (run.partials?.length) {
      const list = make("ol", "lines");
      list.start = run.first;
      for (const text of run.partials) make("li", "", text, list);
      parts.push(section("Partial results, the last ones", list));
    }
    if (run.traceback) parts.push(section("Traceback", make("pre", "", run.traceback)));
    if (run.logs) parts.push(section("What it has logged, times in UTC", make("pre", "lines", run.logs)));
    const first = !rest.querySelector(".back");
    rest.replaceChildren(...parts);
    if (first || root.getRootNode().activeElement === null) button.focus();
  }

  // ---------------------------------------------------------------- what the server says

  function hear(text) {
    const said = JSON.parse(text);
    gone = false;
    if (said.rows) {
      ahead = Date.now() / 1000 - said.now;
      general = said.head;
      if (said.all) {
        const there = new Set(said.rows.map(({ id }) => id));
        for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
      }
      for (const id of said.gone) rows.delete(id);
      said.rows.forEach(enter);
      if (said.rows.some(({ id }) => id === near)) {
        model.send_msg({ ask: "detail", id: near });
        if (one !== null && isLive()) model.send_msg({ ask: "run", id: near, run: one });
      }
      paint();
      return;
    }
    awaited = false;
    if (said.detail) {
      if (said.detail.id === near) {
        found = said.detail;
        if (one === null) showDetail();
      }
    } else if (said.run) {
      if (said.run.id === near && said.run.run === one) showRun(said.run);
    } else if (near !== null) {
      say(answer, said.done ?? said.failed);
      answer.classList.toggle("bad", said.failed !== undefined);
    } else {
      told = said.failed ?? "";
      paint();
    }
  }

  // ---------------------------------------------------------------- the keyboard

  filter.addEventListener("input", paint);
  filter.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { filter.value = ""; paint(); }
    if (event.key === "ArrowDown" || event.key === "Enter") body.firstElementChild?.focus();
  });
  kinds.addEventListener("change", paint);
  function walk(event) {
    const line = event.target.closest("tr");
    const to = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling }[event.key];
    if (to) { to.focus(); event.preventDefault(); }
    if (event.key === "Enter" || event.key === " ") { line.click(); event.preventDefault(); }
  }
  body.addEventListener("keydown", walk);
  const slash = (event) => {
    const at = event.composedPath()[0];
    if (event.key === "/" && !dialog.open && !["INPUT", "TEXTAREA", "SELECT"].includes(at.tagName) && !at.isContentEditable) {
      event.preventDefault();
      filter.focus();
    }
  };
  document.addEventListener("keydown", slash);

  // A failure is told until something else is done.
  for (const event of ["click", "input"]) root.addEventListener(event, () => { if (told) { told = ""; paint(); } });
  model.on("msg:custom", hear);
  model.on("why_not", paint);
  let ticks = 0;
  const timer = setInterval(() => {
    paint();
    if (++ticks % 2 === 0) follow();
  }, 1000);
  let there = true;
  model.on("remove", () => {
    there = false;
    clearInterval(timer);
    document.removeEventListener("keydown", slash);
  });
  const page = view?.model?.document;
  const listen = (event, call) => {
    try {
      page?.on_event(event, () => { if (there) call(); });
    } catch {
      // An older Bokeh does not say so.
    }
  };
  listen("connection_lost", () => { gone = true; paint(); });
  listen("client_reconnected", () => { awaited = false; model.send_msg({ ask: "all" }); });
  model.send_msg({ ask: "all" });
}
