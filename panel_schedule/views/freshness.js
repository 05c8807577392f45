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
    const now = Date.now() / 1000 - ahead;
    const label = model.label ? model.label + " " : "";
    const lost = model.label ? model.label + ": " : "";
    if (model.updated === null) {
      const waits = model.error ? "no value yet" : "waiting for the first value";
      text.textContent = gone ? lost + "server gone, no value yet" : label + waits;
    } else {
      const age = Math.max(0, now - model.updated);
      text.textContent = gone ? lost + `server gone, last value ${old(age)}` : label + "updated " + ago(age);
      text.title = new Date((model.updated + ahead) * 1000).toLocaleString();
    }
    const failed = model.error !== "";
    const late = model.fresh_until !== null && now > model.fresh_until && model.state !== "running";
    const stale = model.stale || (late && !["paused", "removed"].includes(model.state));
    const waiting = model.updated === null;
    const kind = failed ? "failed" : gone ? "gone" : stale ? "stale" : waiting ? "waiting" : model.state;
    line.dataset.kind = kind;
    const words = { failed: "failed", stale: "stale", paused: "paused", removed: "no longer updated" };
    badge.textContent = words[kind] || "";
    reason.textContent = failed ? model.error : "";
    reason.title = model.error;
  }

  function hear() {
    ahead = Date.now() / 1000 - model.now;
    gone = false;
    paint();
  }

  hear();
  model.on("now", hear);
  model.on(["updated", "fresh_until", "state", "stale", "error", "label"], paint);
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
