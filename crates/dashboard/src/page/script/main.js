// Which view is shown, the line at the top, and the beginning.

const VIEWS = ["overview", "dependencies", "disks", "timeline", "capacity"];

const DRAWN_BY = {
  overview: drawOverview,
  dependencies: drawPicture,
  disks: drawDisks,
  timeline: drawTimeline,
  capacity: drawCapacity,
};

let view = "";

function showView() {
  const wanted = location.hash.slice(1);
  if (wanted && !VIEWS.includes(wanted)) return;
  const before = view;
  view = wanted || "overview";
  for (const name of VIEWS) byId(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    setAttribute(link, "aria-current", link.hash === `#${view}` ? "page" : null);
  }
  document.title = `${document.querySelector(`nav a[href="#${view}"]`).textContent} – Sealdisk`;
  if (before && before !== view) {
    window.scrollTo(0, 0);
    say(`${document.querySelector(`nav a[href="#${view}"]`).textContent} is shown`);
  }
  draw();
}

function drawTop() {
  const host = section("host").get("host");
  setText(byId("host"), readable(host?.name ?? ""));
  const alarms = [...section("alarms").values()];
  const grave = alarms.filter((alarm) => alarm.severity === "Critical").length;
  const broken = [...section("logs").values()].filter((log) => !log.intact && !log.problem).length;
  // A disk that is stopped is an alarm too, once it was looked at again.
  const stopped = grave ? 0 : disks().filter(([id, disk]) => stateOf(id, disk)[0] === "bad").length;
  const words = [
    stopped ? `${count(stopped, "disk")} in trouble` : "",
    broken ? `${count(broken, "audit log")} broken` : "",
    grave ? `${grave} critical` : "",
    alarms.length - grave ? count(alarms.length - grave, "warning") : "",
  ].filter(Boolean);
  const tone = broken || grave || stopped ? "bad" : alarms.length ? "warn" : host ? "good" : "unknown";
  const standing = byId("standing");
  const text = words.join(", ") || (host ? "all well" : "looking …");
  if (standing.dataset.text !== text || standing.dataset.tone !== tone) {
    standing.dataset.text = text;
    standing.dataset.tone = tone;
    standing.replaceChildren(shape(tone), make("span", { text }));
  }
  const notice = byId("notice");
  const silent = model.heard ? Math.round((Date.now() - model.heard) / 1000) : 0;
  const why = model.isLost
    ? "The session has ended. Log in again."
    : silent > 15
      ? `Nothing was heard of the server for ${silent} s: what is shown is as old.`
      : host?.failure
        ? `Disks, keys and vaults cannot be looked at: ${readable(host.failure)}`
        : "";
  notice.hidden = !why;
  if (notice.dataset.text !== why) {
    notice.dataset.text = why;
    notice.replaceChildren(why, ...(model.isLost ? [" ", make("a", { href: "/", text: "To the form" })] : []));
  }
  setText(byId("freshness"), model.heard && !model.isLost ? (silent > 4 ? `${silent} s old` : "live") : "");
}

function choosePicture(isTable) {
  picture.isTable = isTable;
  setAttribute(byId("as-picture"), "aria-pressed", String(!isTable));
  setAttribute(byId("as-table"), "aria-pressed", String(isTable));
  draw();
}

function begin() {
  setupDisks();
  setupTimeline();
  byId("picture").addEventListener("keydown", pictureKey);
  byId("what-if").addEventListener("keydown", (event) => event.key === "Escape" && closeWhatIf());
  byId("disk-panel").addEventListener("keydown", (event) => event.key === "Escape" && closeDisk());
  byId("picture-filter").addEventListener("input", (event) => {
    picture.filter = event.target.value;
    draw();
  });
  byId("as-picture").addEventListener("click", () => choosePicture(false));
  byId("as-table").addEventListener("click", () => choosePicture(true));
  choosePicture(picture.isTable);
  listeners.add(drawTop);
  listeners.add(() => DRAWN_BY[view]());
  addEventListener("hashchange", showView);
  showView();
  drawWhatIf();
  setInterval(draw, 5000);
  keepAsking(askState, STATE_PERIOD);
  keepAsking(askLive, LIVE_PERIOD);
  keepAsking(askTimeline, TIMELINE_PERIOD);
}

begin();
