// All of the host at a glance.

const overview = { tiles: new Map(), plots: null, busy: null, alarms: "" };

function overviewTile(name) {
  if (!overview.tiles.has(name)) {
    const value = make("span");
    const icon = make("span", { class: "tile-icon" });
    const made = tile(name, make("span", {}, icon, value));
    overview.tiles.set(name, { element: made, value, icon, note: made.querySelector(".tile-note"), bar: null });
    byId("tiles").append(made);
  }
  return overview.tiles.get(name);
}

function setTile(name, value, note, bar, tone) {
  const made = overviewTile(name);
  setAttribute(made.value, "data-tone", tone);
  if (made.tone !== tone) made.icon.replaceChildren(...(tone ? [shape(tone)] : []));
  made.tone = tone;
  setText(made.value, value);
  setText(made.note, note);
  const key = bar && JSON.stringify(bar);
  if (key && key !== made.bar) {
    made.bar = key;
    made.element.querySelector(".shares")?.remove();
    made.element.append(shares(bar, note));
  }
}

function drawOverview() {
  if (!overview.plots) {
    overview.plots = {
      bytes: new Plot(byId("plot-bytes"), [
        { name: "read", word: "read", value: (total) => total.readBytes },
        { name: "write", word: "write", value: (total) => total.writeBytes },
      ], byteRate),
      latency: new Plot(byId("plot-latency"), [
        { name: "p50", word: "p50", value: (total) => total.p50 },
        { name: "p99", word: "p99", value: (total) => total.p99 },
      ], latency),
    };
  }
  overview.plots.bytes.set(model.totals, model.now);
  overview.plots.latency.set(model.totals, model.now);
  drawTiles();
  drawAlarms();
  drawBusiest();
}

function drawTiles() {
  const all = disks();
  const tones = { bad: 0, warn: 0, unknown: 0, good: 0, idle: 0 };
  for (const [id, disk] of all) tones[stateOf(id, disk)[0]] += 1;
  const attached = model.rows.size;
  const trouble = tones.bad + tones.warn + tones.unknown;
  const parts = ["good", "idle", "unknown", "warn", "bad"].map((tone) => ({ tone, value: tones[tone] }));
  const note = trouble ? `${attached} attached, ${trouble} need a look` : `${attached} attached, all well`;
  setTile("Disks", all.length.toLocaleString("en"), note, parts);

  const keys = [...section("keys").values()];
  const bad = keys.filter((key) => keyState(key)[0] === "bad").length;
  const soon = keys.filter((key) => key.expires && key.expires > now() && key.expires < now() + 30 * DAY).length;
  const keyNotes = [bad ? `${bad} cannot be used` : "all can be used", soon ? `${soon} end within 30 days` : ""];
  setTile("Key versions", keys.length.toLocaleString("en"), keyNotes.filter(Boolean).join(", "), null, bad ? "bad" : soon ? "warn" : null);

  const total = latest(model.totals, model.now) ?? {};
  const requests = (number) => (number ? `${rate(number)} requests a second` : "no requests");
  setTile("Reads", byteRate(total.readBytes), requests(total.reads));
  setTile("Writes", byteRate(total.writeBytes), requests(total.writes));
  setTile("Latency", latency(total.p99), total.p50 ? `p99; half within ${latency(total.p50)}` : "p99 of reads and writes");

  const logs = [...section("logs").values()];
  const broken = logs.filter((log) => !log.intact).length;
  const records = logs.reduce((sum, log) => sum + log.verified, 0);
  const logNote = logs.length === 0 ? "not verified yet" : `${count(records, "record")} in ${count(logs.length, "log")}`;
  setTile("Audit", logs.length === 0 ? "–" : broken ? `${broken} broken` : "intact", logNote, null, broken ? "bad" : logs.length ? "good" : null);
}

// Alarms are drawn anew when there are others: a reader in the middle of one is not disturbed.
function drawAlarms() {
  const alarms = [...section("alarms").values()];
  const key = JSON.stringify(alarms);
  if (key === overview.alarms) return;
  overview.alarms = key;
  const grave = { Critical: "bad", Warning: "warn" };
  alarms.sort((one, other) => one.severity.localeCompare(other.severity) || compareNames(one.code, other.code));
  const items = alarms.slice(0, 100).map((alarm) =>
    make(
      "li",
      {},
      badge([grave[alarm.severity] ?? "unknown", alarm.severity.toLowerCase()]),
      make("div", {},
        make("p", { class: "alarm-title" }, inWords(alarm.code), " · ", nameOf(alarm.subject.name)),
        make("p", { text: readable(alarm.message) }),
        make("p", { class: "quiet", text: readable(alarm.remedy) }),
      ),
    ),
  );
  if (alarms.length > 100) items.push(make("li", { class: "quiet", text: `and ${alarms.length - 100} more` }));
  if (items.length === 0) items.push(make("li", { class: "empty", text: "Nothing will break soon, as far as is known." }));
  byId("alarms").replaceChildren(...items);
}

const BUSIEST = 8;

function drawBusiest() {
  if (!overview.busy) {
    const rows = Array.from({ length: BUSIEST }, () => {
      const { spark, line } = sparkline();
      const name = nameOf("");
      const numbers = make("td", { class: "number" });
      const slow = make("td", { class: "number" });
      const row = make("tr", {}, make("td", { class: "name" }, name), make("td", {}, spark), numbers, slow);
      return { row, name, line, numbers, slow };
    });
    const heads = [["Disk"], ["Two minutes"], ["Requests/s", "number"], ["p99", "number"]].map(([word, kind]) => make("th", { scope: "col", class: kind, text: word }));
    const table = make("table", { class: "plain" }, make("thead", {}, make("tr", {}, ...heads)));
    table.append(make("tbody", {}, ...rows.map(({ row }) => row)));
    overview.busy = { rows, empty: make("p", { class: "empty", text: "No disk is busy." }), table };
    byId("busy").append(table, overview.busy.empty);
  }
  const busy = [...model.rows].filter(([, row]) => row.reads + row.writes > 0);
  busy.sort(([, one], [, other]) => other.reads + other.writes - one.reads - one.writes);
  overview.busy.rows.forEach(({ row, name, line, numbers, slow }, at) => {
    const found = busy[at];
    row.hidden = !found;
    if (!found) return;
    const [id, disk] = found;
    setText(name, readable(disk.name));
    setSparkline(line, model.samples.get(id) ?? []);
    setText(numbers, rate(disk.reads + disk.writes));
    setText(slow, latency(disk.p99));
  });
  overview.busy.table.hidden = busy.length === 0;
  overview.busy.empty.hidden = busy.length > 0;
}
