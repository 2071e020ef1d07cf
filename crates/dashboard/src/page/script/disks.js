// All disks, snapshots and images, in a list that stays fast with thousands.

const diskList = { list: null, states: new Set(), set: null, sort: { key: "state", descending: false }, chips: new Map(), panel: null, order: "" };

const DISK_COLUMNS = [
  ["state", "State", "c-state"],
  ["name", "Name", "c-name"],
  ["set", "Set", "c-set"],
  ["requests", "Req/s", "c-number c-requests"],
  ["", "Two minutes", "c-spark"],
  ["readBytes", "Read", "c-number c-read"],
  ["writeBytes", "Write", "c-number c-write"],
  ["p50", "p50", "c-number c-p50"],
  ["p99", "p99", "c-number c-p99"],
  ["inFlight", "Queue", "c-number c-queue"],
  ["size", "Size", "c-number c-size"],
  ["data", "Data", "c-number c-data"],
];

const KINDS = { disk: "disk", snapshot: "snapshot", image: "image" };

function setupDisks() {
  diskList.list = new List(byId("disk-list"), {
    label: "Disks, snapshots and images",
    columns: DISK_COLUMNS,
    heights: { wide: 32, narrow: 62 },
    row: diskRow,
    opened: (item) => item.id && openDisk(item.id),
    sorted: (key) => {
      const isSame = diskList.sort.key === key;
      diskList.sort = { key, descending: isSame ? !diskList.sort.descending : !["name", "set", "state"].includes(key) };
      byId("disk-sort").value = key;
      drawDisks();
    },
  });
  const sort = byId("disk-sort");
  for (const [key, word] of DISK_COLUMNS.filter(([key]) => key)) sort.append(make("option", { value: key, text: word.toLowerCase() }));
  sort.addEventListener("change", () => {
    diskList.sort = { key: sort.value, descending: !["name", "set", "state"].includes(sort.value) };
    drawDisks();
  });
  byId("disk-filter").addEventListener("input", draw);
  byId("disk-group").addEventListener("change", draw);
}

// The cells of a row are made once, and filled with whatever scrolls by.
function diskRow(cells) {
  const [state, name, set, requests, spark, read, write, p50, p99, queue, size, data] = cells;
  const { spark: svg, line } = sparkline();
  const icon = shape("idle");
  const path = icon.firstChild;
  const word = make("span");
  const title = nameOf("");
  const kind = make("span", { class: "kind" });
  const of = nameOf("");
  state.append(icon, word);
  name.append(title, kind);
  set.append(of);
  spark.append(svg);
  return (item, element) => {
    setAttribute(element, "data-group", item.group ? "" : null);
    if (item.group !== undefined && !item.id) {
      setAttribute(icon, "data-tone", item.tone);
      setAttribute(path, "d", TONES[item.tone]);
      setText(word, "");
      setText(title, item.group);
      setText(kind, ` ${item.amount.toLocaleString("en")}`);
      for (const cell of [requests, read, write, p50, p99, queue, size, data]) setText(cell, "");
      setText(of, "");
      setAttribute(line, "d", "");
      return;
    }
    const { resource, row, state: [tone, said] } = item;
    setAttribute(icon, "data-tone", tone);
    setAttribute(path, "d", TONES[tone]);
    setAttribute(state, "data-tone", tone);
    setText(word, said);
    setText(title, readable(resource.name));
    setText(kind, resource.kind === "disk" ? "" : ` ${KINDS[resource.kind] ?? ""}`);
    setText(of, resource.set ? readable(resource.set) : "platform");
    setText(requests, row ? rate(row.reads + row.writes) : "");
    setSparkline(line, (row && model.samples.get(item.id)) ?? []);
    setText(read, row ? byteRate(row.readBytes) : "");
    setText(write, row ? byteRate(row.writeBytes) : "");
    setText(p50, row ? latency(row.p50) : "");
    setText(p99, row ? latency(row.p99) : "");
    setText(queue, row ? String(row.inFlight ?? "–") : "");
    setText(size, bytes(resource.size));
    setText(data, bytes(resource.data));
  };
}

// What a column is sorted by.
const SORTED_BY = {
  state: ({ state }) => TONE_ORDER.indexOf(state[0]),
  name: ({ id }) => nameRanks().get(id),
  set: ({ resource }) => resource.set ?? "",
  requests: ({ row }) => (row ? row.reads + row.writes : -1),
  readBytes: ({ row }) => row?.readBytes ?? -1,
  writeBytes: ({ row }) => row?.writeBytes ?? -1,
  p50: ({ row }) => row?.p50 ?? -1,
  p99: ({ row }) => row?.p99 ?? -1,
  inFlight: ({ row }) => row?.inFlight ?? -1,
  size: ({ resource }) => resource.size,
  data: ({ resource }) => resource.data ?? -1,
};

function drawDisks() {
  if (byId("disks").hidden) return;
  const word = byId("disk-filter").value.toLowerCase();
  const has = (text) => text && readable(text).toLowerCase().includes(word);
  const all = [...section("resources")].map(([id, resource]) => ({ id, resource, row: model.rows.get(id), state: stateOf(id, resource) }));
  drawStateChips(all);
  const isMeant = ({ resource, state }) =>
    (diskList.states.size === 0 || diskList.states.has(state[1])) &&
    (diskList.set === null || (resource.set ?? PLATFORM) === diskList.set) &&
    (!word || has(resource.name) || has(resource.set) || has(resource.key));
  const { key, descending } = diskList.sort;
  const by = SORTED_BY[key];
  const rank = nameRanks();
  const compare = (one, other) => {
    const [first, second] = [by(one), by(other)];
    const order = typeof first === "string" ? compareNames(first, second) : first - second;
    return (descending ? -order : order) || rank.get(one.id) - rank.get(other.id);
  };
  const items = all.filter(isMeant).sort(compare);
  diskList.list.set(grouped(items), "No disk is like that.", diskList.sort);
  drawDiskPanel();
}

const GROUPED_BY = {
  set: ({ resource }) => resource.set ?? "platform-managed",
  state: ({ state }) => state[1],
  key: ({ resource }) => resource.key.replace(/^https:\/\//, ""),
};

function grouped(items) {
  const by = GROUPED_BY[byId("disk-group").value];
  if (!by) return items;
  const groups = new Map();
  for (const item of items) {
    const name = by(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return [...groups].sort(([one], [other]) => compareNames(one, other)).flatMap(([name, inside]) => [
    { group: readable(name), amount: inside.length, tone: worst(inside.map(({ state }) => state[0])) },
    ...inside,
  ]);
}

function drawStateChips(all) {
  const counts = new Map();
  for (const { state } of all) counts.set(state[1], { state, amount: (counts.get(state[1])?.amount ?? 0) + 1 });
  const container = byId("disk-states");
  const order = ({ state }) => TONE_ORDER.indexOf(state[0]);
  const shown = [...counts.values()].sort((one, other) => order(one) - order(other) || compareNames(one.state[1], other.state[1]));
  const key = shown.map(({ state }) => state[1]).join();
  if (key !== diskList.order) {
    diskList.order = key;
    container.replaceChildren();
    diskList.setAmount = chips(
      container,
      shown.map(({ state }) => [state[1], make("span", {}, shape(state[0]), ` ${state[1]}`)]),
      diskList.states,
      draw,
    );
    for (const state of diskList.states) if (!counts.has(state)) diskList.states.delete(state);
  }
  for (const { state, amount } of shown) diskList.setAmount(state[1], ` ${amount.toLocaleString("en")}`);
  let only = byId("only-set");
  if (diskList.set === null) only?.remove();
  else if (!only) {
    only = make("button", { id: "only-set", class: "chip", type: "button", "aria-pressed": "true", onclick: () => showDisksOf(null) });
    byId("disk-states").prepend(only);
  }
  if (only && diskList.set !== null) setText(only, `only ${diskList.set === PLATFORM ? "platform-managed" : readable(diskList.set)} ✕`);
}

function showDisksOf(set) {
  diskList.set = set;
  diskList.states.clear();
  diskList.order = "";
  byId("disk-filter").value = "";
  if (location.hash === "#disks") draw();
  else location.hash = "#disks";
}

function openDisk(id) {
  diskList.panel = id;
  byId("disk-panel").hidden = false;
  drawDiskPanel(true);
  byId("disk-panel").focus({ preventScroll: innerWidth > 1000 });
}

function closeDisk() {
  diskList.panel = null;
  byId("disk-panel").hidden = true;
  diskList.list.scroller.focus();
}

function drawDiskPanel(isNew) {
  const panel = byId("disk-panel");
  const id = diskList.panel;
  if (panel.hidden || !id) return;
  const resource = section("resources").get(id);
  if (!resource) return closeDisk();
  const row = model.rows.get(id);
  const key = JSON.stringify([resource, row, section("keys").get(resource.key)?.state]);
  if (!isNew && panel.dataset.drawn === key) return;
  panel.dataset.drawn = key;
  const version = section("keys").get(resource.key);
  const facts = [
    ["State", badge(stateOf(id, resource))],
    ["Why", row?.reason ?? row?.silent ?? resource.problem ?? resource.failedSync],
    ["Set", resource.set ?? "platform-managed key"],
    ["Key", version ? `${version.name} ${shortVersion(version.version)}` : resource.key],
    ["Key state", badge(keyState(version))],
    ["Older keys of layers", resource.otherKeys.length ? resource.otherKeys.length : null],
    ["Requests", row ? `${rate(row.reads)} reads/s, ${rate(row.writes)} writes/s` : null],
    ["Latency", row ? `p50 ${latency(row.p50)}, p99 ${latency(row.p99)}` : null],
    ["In flight", row?.inFlight],
    ["Failed requests", row?.errors],
    ["Data planes restarted", row?.restarts || null],
    ["Job", row?.job ? `${row.job.kind}, ${percent(row.job.bytesDone, row.job.bytesTotal)}${row.job.paused ? ", paused" : ""}` : resource.job?.kind],
    ["Size", bytes(resource.size)],
    ["Data", bytes(resource.data)],
    ["On storage", `${bytes(resource.used)}, of which shared ${bytes(resource.shared)}`],
    ["Layers", resource.layers],
    ["Made of", resource.source],
    ["Attached", resource.attachedSince ? `${ago(resource.attachedSince)} on ${resource.host}` : null],
    ["Made", timeOf(resource.created)],
  ];
  const list = make("dl", { class: "facts" });
  for (const [word, value] of facts) {
    if (value === null || value === undefined || value === "") continue;
    list.append(make("dt", { text: word }), make("dd", {}, value instanceof Node ? value : nameOf(value)));
  }
  const happened = model.timeline.filter((entry) => entry.disk === resource.name || entry.disk === id).slice(0, 12);
  const events = happened.map((entry) => make("li", {}, make("span", { class: "quiet", text: `${ago(entry.at)} ` }), readable(entry.detail || inWords(entry.what))));
  panel.replaceChildren(
    make("div", { class: "panel-head" },
      make("h2", { id: "disk-panel-title" }, nameOf(resource.name)),
      make("button", { class: "button", type: "button", text: "Close", onclick: closeDisk }),
    ),
    list,
    make("h3", { text: "What happened" }),
    make("ul", { class: "reasons" }, ...(events.length ? events : [make("li", { class: "quiet", text: "nothing that is known here" })])),
  );
}
