const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function span(seconds) {
  const i = UNITS.findIndex(([size]) => seconds >= size);
  const [size, unit] = UNITS[i];
  const whole = Math.floor(seconds / size);
  return `${whole} ${unit}`;
}

const ago = (seconds) => seconds < 1 ? "just now" : span(seconds) + " ago";
const old = (seconds) => seconds < 1 ? "just in" : span(seconds) + " old";

export function render({ model, el, view }) {
  const line = document.createElement("div");
  line.className = "line";
  line.setAttribute("role", "status");
  const dot = line.appendChild(document.createElement("span"));
  dot.className = "dot";
  const text = line.appendChild(document.createElement("span"));
  const badge = line.appendChild(document.createElement("span"));
  badge.className = "badge";
  const reason = line.appendChild(document.createElement("span"));
  reason.className = "reason";
  el.appendChild(line);

  // The server is heard no more: what it said last may be true no longer.
  let gone = false;
  let ahead = 0;

  function paint() {
    const { updated, fresh_until, state, stale: outdated, error } = model.told;
    const now = Date.now() / 1000 - ahead;
    const label = model.label ? model.label + " " : "";
    const lost = model.label ? model.label + ": " : "";
    if (updated === null) {
      const waits = error ? "no value yet" : "waiting for the first value";
      text.textContent = gone ? lost + "server gone, no value yet" : label + waits;
    } else {
      const age = Math.max(0, now - updated);
      text.textContent = gone ? lost + `server gone, last value ${old(age)}` : label + "updated " + ago(age);
      text.title = new Date((updated + ahead) * 1000).toLocaleString();
    }
    const failed = error !== "";
    const late = fresh_until !== null && now > fresh_until && state !== "running";
    const stale = outdated || (late && !["paused", "removed"].includes(state));
    const waiting = updated === null;
    const kind = failed ? "failed" : gone ? "gone" : stale ? "stale" : waiting ? "waiting" : state;
    line.dataset.kind = kind;
    const words = { failed: "failed", stale: "stale", paused: "paused", removed: "no longer updated" };
    badge.textContent = words[kind] || "";
    reason.textContent = failed ? error : "";
    reason.title = error;
  }

  function hear() {
    ahead = Date.now() / 1000 - model.told.now;
    gone = false;
    paint();
  }

  hear();
  model.on("told", hear);
  model.on("label", paint);
  const timer = setInterval(paint, 1000);
  let there = true;
  model.on("remove", () => { there = false; clearInterval(timer); });
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
