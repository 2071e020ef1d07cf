// What happened, and whether the records of it can be trusted.

const timeline = { list: null, topics: new Set(TOPICS.map(([topic]) => topic).filter((topic) => topic !== "use")), onlyRefused: new Set(), logs: "", strip: "", setAmount: null };

const TIMELINE_COLUMNS = [
  ["", "Time", "c-time"],
  ["", "What", "c-what"],
  ["", "Of", "c-of"],
  ["", "By", "c-by"],
  ["", "Result", "c-result"],
  ["", "Record", "c-record"],
];

function setupTimeline() {
  timeline.setAmount = chips(byId("timeline-topics"), TOPICS, timeline.topics, draw);
  timeline.setRefused = chips(byId("timeline-topics"), [["refused", "Only refusals"]], timeline.onlyRefused, draw);
  timeline.list = new List(byId("timeline-list"), {
    label: "What happened, the newest first",
    columns: TIMELINE_COLUMNS,
    heights: { wide: 32, narrow: 66 },
    row: timelineRow,
    opened: null,
  });
  byId("timeline-filter").addEventListener("input", draw);
}

function timelineRow(cells) {
  const [time, what, of, by, result, record] = cells;
  const who = nameOf("");
  const subject = nameOf("");
  const icon = shape("good");
  const said = make("span");
  const verifiedIcon = shape("good");
  const number = make("span");
  of.append(subject);
  by.append(who);
  result.append(icon, said);
  record.append(verifiedIcon, number);
  return (entry) => {
    setText(time, timeOf(entry.at));
    setText(what, inWords(entry.what));
    setText(subject, subjectOf(entry));
    setAttribute(of, "title", readable([entry.key, entry.version, entry.disk, entry.detail].filter(Boolean).join(" · ")));
    setText(who, entry.caller ? whoIs(entry.caller) : "");
    const [tone, word] = entry.code ? ["bad", readable(entry.code)] : ["good", entry.log ? "allowed" : ""];
    setTone(icon, tone);
    icon.toggleAttribute("hidden", !word);
    setText(said, word);
    const [trust, why] = trustOf(entry);
    setTone(verifiedIcon, trust);
    verifiedIcon.toggleAttribute("hidden", !entry.log);
    setText(number, entry.log ? `${readable(entry.log)} ${entry.seq}` : "event");
    setAttribute(record, "title", why);
  };
}

function setTone(icon, tone) {
  setAttribute(icon, "data-tone", tone);
  setAttribute(icon.firstChild, "d", TONES[tone]);
}

function subjectOf(entry) {
  if (!entry.log) return readable(entry.detail || entry.disk);
  const key = entry.key ? entry.key.replace(/^https:\/\//, "") : "";
  const version = entry.version ? ` ${entry.version.slice(0, 8)}` : "";
  const detail = entry.detail ? ` (${entry.detail})` : "";
  return readable([key + version, entry.disk].filter(Boolean).join(" · ") + detail);
}

// Whether the chain of its log fits up to a record.
function trustOf(entry) {
  const log = section("logs").get(entry.log);
  if (!entry.log) return ["idle", "told by the disk, in no log"];
  if (!log || log.problem) return ["unknown", "not verified"];
  if (log.finding && entry.seq >= log.firstBad) return ["bad", `the chain is broken at record ${log.firstBad}`];
  return entry.seq <= log.verified ? ["good", "verified: the chain fits"] : ["unknown", "not verified yet"];
}

function drawTimeline() {
  if (byId("timeline").hidden) return;
  drawLogs();
  const word = byId("timeline-filter").value.toLowerCase();
  // Rates change all the time, and this seldom does.
  const key = [model.timelineAfter, timeline.logs, model.structure, word, ...timeline.topics, ...timeline.onlyRefused].join();
  if (key === timeline.drawn) return;
  timeline.drawn = key;
  const amounts = new Map(TOPICS.map(([topic]) => [topic, 0]));
  let refused = 0;
  const has = (text) => text && readable(text).toLowerCase().includes(word);
  const shown = model.timeline.filter((entry) => {
    amounts.set(entry.topic, (amounts.get(entry.topic) ?? 0) + 1);
    if (entry.code) refused += 1;
    const isMeant = entry.code ? timeline.topics.has(entry.topic) || timeline.onlyRefused.has("refused") || entry.topic === "use" : timeline.topics.has(entry.topic);
    if (!isMeant || (timeline.onlyRefused.has("refused") && !entry.code)) return false;
    return !word || [inWords(entry.what), entry.what, entry.key, entry.disk, entry.detail, entry.code, entry.caller && whoIs(entry.caller)].some(has);
  });
  for (const [topic, amount] of amounts) timeline.setAmount(topic, ` ${amount.toLocaleString("en")}`);
  timeline.setRefused("refused", ` ${refused.toLocaleString("en")}`);
  drawStrip(shown);
  timeline.list.set(shown, "Nothing like that has happened, as far back as is looked here.");
}

function drawLogs() {
  const logs = [...section("logs")];
  const key = JSON.stringify([logs, [...section("verified")].map(([, at]) => Math.floor((now() - at) / 10))]);
  if (key === timeline.logs) return;
  timeline.logs = key;
  const items = logs.map(([name, log]) => {
    const state = log.problem ? ["unknown", "cannot be verified"] : log.intact ? ["good", "intact"] : ["bad", "broken"];
    const upTo = log.intact ? `the chain fits up to record ${log.verified.toLocaleString("en")}` : readable(log.finding ?? log.problem);
    const checked = section("verified").get(name);
    const notes = [
      log.signed ? `end signed ${ago(Date.parse(log.signed) / 1000)}` : "",
      log.archived ? `${count(log.archived, "record")} archived, not looked at` : "",
      log.checkpoints ? `compared with ${count(log.checkpoints, "checkpoint")}` : "",
      checked ? `verified ${ago(checked)}` : "",
    ];
    return make("li", { class: "card log", "data-tone": state[0] },
      make("p", { class: "log-name" }, nameOf(name), " ", badge(state)),
      make("p", { class: "log-finding", text: upTo }),
      make("p", { class: "quiet", text: notes.filter(Boolean).join(", ") }),
    );
  });
  if (items.length === 0) items.push(make("li", { class: "card log" }, make("p", { class: "quiet", text: "No audit log was verified yet." })));
  byId("logs").replaceChildren(...items);
}

const BUCKETS = 96;

// How much happened when, refusals on top.
function drawStrip(entries) {
  const oldest = entries.at(-1)?.at;
  const newest = now();
  const key = `${entries.length} ${entries[0]?.n} ${oldest} ${Math.floor(newest / 30)}`;
  if (key === timeline.strip) return;
  timeline.strip = key;
  const container = byId("timeline-strip");
  if (!oldest) return container.replaceChildren();
  const span = Math.max(newest - oldest, 60);
  const allowed = new Array(BUCKETS).fill(0);
  const refused = new Array(BUCKETS).fill(0);
  for (const entry of entries) {
    const at = Math.min(Math.floor(((entry.at - oldest) / span) * BUCKETS), BUCKETS - 1);
    (entry.code ? refused : allowed)[Math.max(at, 0)] += 1;
  }
  const most = Math.max(...allowed.map((amount, at) => amount + refused[at]), 1);
  const label = `${count(entries.length, "entry", "entries")} from ${timeOf(oldest)} to now, ${refused.reduce((sum, one) => sum + one, 0)} refused`;
  const svg = makeSvg("svg", { class: "strip-bars", viewBox: "0 0 960 56", preserveAspectRatio: "none", role: "img", "aria-label": label });
  // The root of it: one among many is seen too.
  const scaled = (amount) => Math.sqrt(amount / most) * 52;
  for (let at = 0; at < BUCKETS; at += 1) {
    const whole = scaled(allowed[at] + refused[at]);
    const part = whole * (refused[at] / (allowed[at] + refused[at] || 1));
    if (whole > 0) svg.append(makeSvg("rect", { class: "bar", x: at * 10, y: 56 - whole, width: 8, height: whole }));
    if (part > 0) svg.append(makeSvg("rect", { class: "bar", "data-tone": "bad", x: at * 10, y: 56 - whole, width: 8, height: Math.max(part, 3) }));
  }
  container.replaceChildren(svg, make("p", { class: "strip-ends" }, make("span", { text: timeOf(oldest) }), make("span", { text: label.replace(/ from.*now/, "") }), make("span", { text: "now" })));
}
