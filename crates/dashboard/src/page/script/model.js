// What the server has told, and asking it for what has changed.

const STATE_PERIOD = 3000;
const LIVE_PERIOD = 2000;
const TIMELINE_PERIOD = 4000;
// Samples of a disk that are kept for its sparkline: two minutes.
const SAMPLES = 60;

const model = {
  cursor: "",
  liveCursor: "",
  totalsAfter: 0,
  timelineAfter: 0,
  sections: new Map(),
  rows: new Map(),
  samples: new Map(),
  totals: [],
  // The server's time, in seconds, and this page's when samples were taken last.
  now: 0,
  sampled: 0,
  timeline: [],
  // Grows with every answer, and with every change of who is there.
  revision: 0,
  structure: 0,
  heard: 0,
  isLost: false,
};

const section = (name) => model.sections.get(name) ?? new Map();

const listeners = new Set();
let isDrawing = false;

// However much comes, there is one drawing for each frame.
function changed() {
  model.revision += 1;
  draw();
}

function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    for (const listener of listeners) listener();
  });
}

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(30000) });
  if (answer.status === 401) {
    model.isLost = true;
    draw();
    throw new Error("the session has ended");
  }
  if (!answer.ok) throw new Error(`${answer.status}`);
  model.heard = Date.now();
  return answer.json();
}

function apply(target, changes) {
  for (const id of changes.gone ?? []) target.delete(id);
  for (const [id, value] of Object.entries(changes.put ?? {})) target.set(id, value);
}

async function askState() {
  const { cursor, full, sections } = await ask(`/api/state?since=${model.cursor}`);
  model.cursor = cursor;
  if (full) model.sections.clear();
  for (const [name, changes] of Object.entries(sections)) {
    if (!model.sections.has(name)) model.sections.set(name, new Map());
    apply(model.sections.get(name), changes);
    if (STRUCTURE.has(name)) model.structure += 1;
  }
  if (full || Object.keys(sections).length > 0) changed();
}

// The picture is laid out anew when one of these changes.
const STRUCTURE = new Set(["vaults", "keys", "sets", "identities", "resources"]);

async function askLive() {
  const { rows, totals, last, now } = await ask(`/api/live?since=${model.liveCursor}&after=${model.totalsAfter}`);
  model.liveCursor = rows.cursor;
  if (rows.full) model.rows.clear();
  // Another server counts anew.
  if (last < model.totalsAfter) model.totals = [];
  model.totalsAfter = last;
  apply(model.rows, rows.sections.rows ?? {});
  for (const [, total] of totals) model.totals.push(total);
  model.totals = model.totals.filter(({ time }) => time <= now && now - time <= PLOTTED);
  model.now = now;
  sample();
  changed();
}

function sample() {
  // What was before a pause is not beside what is now.
  if (Date.now() - model.sampled > APART * 1000) model.samples.clear();
  model.sampled = Date.now();
  for (const id of model.samples.keys()) if (!model.rows.has(id)) model.samples.delete(id);
  for (const [id, row] of model.rows) {
    if (!model.samples.has(id)) model.samples.set(id, []);
    const samples = model.samples.get(id);
    samples.push(row.reads + row.writes);
    if (samples.length > SAMPLES) samples.shift();
  }
}

const MAX_ENTRIES = 6000;

async function askTimeline() {
  const { entries, last } = await ask(`/api/timeline?after=${model.timelineAfter}`);
  if (last < model.timelineAfter) model.timeline = [];
  model.timelineAfter = last;
  if (entries.length === 0) return;
  for (const entry of entries) entry.at = Date.parse(entry.time) / 1000;
  model.timeline = model.timeline.concat(entries).sort((one, other) => other.at - one.at || other.n - one.n);
  model.timeline.length = Math.min(model.timeline.length, MAX_ENTRIES);
  changed();
}

// Asks again and again, while the page is seen.
async function keepAsking(question, period) {
  for (;;) {
    if (document.hidden) {
      await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
      continue;
    }
    try {
      await question();
    } catch (error) {
      if (model.isLost) return;
      draw();
    }
    await new Promise((later) => setTimeout(later, period));
  }
}

// What is known of disks, snapshots and images, with what an attached one does.
function stateOf(id, resource) {
  const row = model.rows.get(id);
  const own = DISK_STATES[resource.state] ?? ["unknown", readable(resource.state)];
  if (!row || resource.kind !== "disk") return own;
  // What is wrong with its files is not told by who serves it.
  if (own[0] === "bad") return own;
  return STANDINGS[row.standing] ?? ["unknown", readable(row.words)];
}

// The places of resources by their names: to compare names takes long, and they seldom change.
const ranks = { structure: -1, of: new Map() };

function nameRanks() {
  if (ranks.structure !== model.structure) {
    const names = [...section("resources")].map(([id, resource]) => [id, resource.name]);
    names.sort(([, one], [, other]) => compareNames(one, other));
    ranks.of = new Map(names.map(([id], rank) => [id, rank]));
    ranks.structure = model.structure;
  }
  return ranks.of;
}

const disks = () => [...section("resources")].filter(([, resource]) => resource.kind === "disk");

const keyState = (key) => KEY_STATES[key?.state] ?? KEY_STATES.notKnown;

// The worst of several tones.
const worst = (tones) => TONE_ORDER.find((tone) => tones.includes(tone)) ?? "idle";

function whoIs(id) {
  const identity = section("identities").get(id);
  if (!identity) return `identity ${readable(id).slice(0, 8)}`;
  if (identity.kind === "set") return `set ${readable(identity.name)}`;
  return readable(identity.name);
}
