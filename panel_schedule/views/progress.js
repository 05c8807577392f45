const ENDS = { succeeded: "Done", failed: "Failed", timed_out: "Timed out", crashed: "Crashed",
               cancelled: "Cancelled", skipped: "Not run" };
const TROUBLE = ["failed", "timed_out", "crashed", "skipped"];

function duration(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}

function roughly(seconds) {
  if (seconds < 10) return duration(Math.ceil(seconds));
  if (seconds < 55) return duration(5 * Math.ceil(seconds / 5));
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${Math.max(1, minutes)} min` : duration(60 * minutes);
}

function ordinal(n) {
  const last = n % 100 > 10 && n % 100 < 14 ? 0 : n % 10;
  return n + (["th", "st", "nd", "rd"][last] || "th");
}

// When a run has begun and will have ended, on the clock of this browser.
class Times {
  begun = null;
  end = null;
  percent = -1;

  tell({ state, percent, elapsed }) {
    if (state !== "running" || elapsed === null) return Object.assign(this, new Times());
    const now = Date.now() / 1000;
    const begun = now - elapsed;
    // The messages that were under way for the shortest time know best.
    if (this.begun === null || Math.abs(this.begun - begun) > 5) this.begun = begun;
    this.begun = Math.min(this.begun, begun);
    if (percent < this.percent) this.end = null;
    if (percent !== this.percent && percent >= 3 && elapsed >= 2) {
      const end = now + elapsed * (100 - percent) / percent;
      this.end = this.end === null ? end : this.end + 0.3 * (end - this.end);
    }
    this.percent = percent;
  }

  text() {
    if (this.begun === null) return "";
    const now = Date.now() / 1000;
    const words = [duration(Math.max(0, now - this.begun))];
    if (this.percent >= 0) words.unshift(`${this.percent} %`);
    if (this.end > now && this.percent < 100) words.push(`about ${roughly(this.end - now)} left`);
    return words.join(" · ");
  }
}

function headline({ state, message, elapsed, position }) {
  if (state === "queued") return position ? `Queued, ${ordinal(position)} in line` : "Queued";
  if (state === "running") return message || "Running";
  if (!(state in ENDS)) return "";
  const how = elapsed === null ? "" : ` ${state === "succeeded" ? "in" : "after"} ` +
    (elapsed < 10 ? `${Math.max(0.1, elapsed).toFixed(1)} s` : duration(elapsed));
  return ENDS[state] + how + (TROUBLE.includes(state) ? ". You can run it again." : "");
}

export function render({ model, el }) {
  const add = (parent, name, role) => {
    const child = parent.appendChild(document.createElement("div"));
    child.className = name;
    if (role) child.setAttribute("role", role);
    return child;
  };
  const root = document.createElement("div");
  root.className = "job";
  const bar = add(root, "bar", "progressbar");
  bar.setAttribute("aria-valuemin", 0);
  bar.setAttribute("aria-valuemax", 100);
  const fill = add(bar, "fill");
  const line = add(root, "line");
  const said = add(line, "said", "status");
  const head = add(said, "head");
  const reason = add(said, "reason");
  const time = add(line, "time");
  el.appendChild(root);

  const times = new Times();
  let timer = null;
  let announced = 0;

  function tick() {
    const text = times.text();
    if (time.textContent !== text) time.textContent = text;
  }

  function paint() {
    const told = model.told;
    const { state, percent } = told;
    const trouble = TROUBLE.includes(state);
    const underWay = state === "running";
    const known = state === "succeeded" ? 100 : percent;
    times.tell(told);
    root.dataset.kind = trouble ? "trouble" : underWay && percent < 0 ? "moving" : state;
    fill.style.width = known >= 0 ? `${known}%` : "";
    const text = headline(told);
    // A screen reader speaks what is said here: each end, but not each of thirty messages in a second.
    const aloud = !underWay || Date.now() - announced > 5000;
    if (aloud) announced = Date.now();
    said.setAttribute("aria-live", aloud ? "polite" : "off");
    if (head.textContent !== text) head.textContent = text;
    head.title = text;
    if (reason.textContent !== told.error) reason.textContent = told.error;
    bar.setAttribute("aria-label", model.label);
    const spoken = text || "Not started";
    bar.setAttribute("aria-valuetext", known >= 0 ? `${known} %, ${spoken}` : spoken);
    if (known >= 0) bar.setAttribute("aria-valuenow", known);
    else bar.removeAttribute("aria-valuenow");
    tick();
    if (underWay && timer === null) timer = setInterval(tick, 500);
    if (!underWay) stop();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
  }

  model.on(["told", "label"], paint);
  model.on("remove", stop);
  paint();
}
