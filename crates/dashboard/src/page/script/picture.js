// Vaults, keys, sets with their identities, and disks: who depends on whom, from left to right.

const COLUMNS = [
  { x: 0, width: 168, title: "Key vaults" },
  { x: 222, width: 214, title: "Keys and versions" },
  { x: 490, width: 226, title: "Sets and identities" },
  { x: 770, width: 230, title: "Disks" },
];
const ROW = 22;
const GAP = 16;
const HEAD = 34;
// Sets that are drawn, and keys and vaults that no set of these needs: more are found by the filter.
const MAX_SETS = 40;
const MAX_UNUSED = 20;
const PLATFORM = "\u0000platform";

const picture = { filter: "", isTable: matchMedia("(max-width: 700px)").matches, drawn: "", focus: null, focusable: [] };

// The parts of the picture, before it is laid out.
function gather() {
  const groups = new Map();
  const groupOf = (name) => {
    if (!groups.has(name)) groups.set(name, { set: name, resources: [], keys: new Set(), others: new Set() });
    return groups.get(name);
  };
  for (const name of section("sets").keys()) groupOf(name);
  for (const [id, resource] of section("resources")) {
    const group = groupOf(resource.set ?? PLATFORM);
    group.resources.push([id, resource]);
    group.keys.add(resource.key);
    for (const key of resource.otherKeys) group.others.add(key);
  }
  const keys = new Map();
  for (const [url, version] of section("keys")) {
    const key = version.version ? url.slice(0, url.lastIndexOf("/")) : url;
    if (!keys.has(key)) keys.set(key, { id: key, name: version.name, vault: version.vault, versions: [] });
    keys.get(key).versions.push({ url, ...version });
  }
  for (const key of keys.values()) {
    key.versions.sort((one, other) => (other.created ?? 0) - (one.created ?? 0) || compareNames(one.url, other.url));
  }
  return { groups: filtered([...groups.values()], keys), keys };
}

// The groups in which something has the word that is looked for: by the key that they need, so that lines do not cross.
function filtered(groups, keys) {
  const word = picture.filter.toLowerCase();
  const keyOf = (group) => section("sets").get(group.set)?.key ?? [...group.keys][0] ?? "";
  const has = (name) => readable(name).toLowerCase().includes(word);
  const matches = (group) => {
    const names = [group.set === PLATFORM ? "platform" : group.set, ...group.keys, keyOf(group)];
    return !word || names.some(has) || group.resources.some(([, resource]) => has(resource.name));
  };
  const vaultOf = (group) => {
    const url = keyOf(group);
    return keys.get(url)?.vault ?? section("keys").get(url)?.vault ?? "~";
  };
  const order = (one, other) =>
    compareNames(vaultOf(one), vaultOf(other)) || compareNames(keyOf(one), keyOf(other)) || compareNames(one.set, other.set);
  return groups.filter(matches).sort(order);
}

function tonesOf(resources) {
  const states = new Map();
  for (const [id, resource] of resources) {
    const state = stateOf(id, resource);
    const known = states.get(state[1]);
    if (known) known.amount += 1;
    else states.set(state[1], { state, amount: 1 });
  }
  const order = (entry) => TONE_ORDER.indexOf(entry.state[0]);
  return [...states.values()].sort((one, other) => order(one) - order(other) || other.amount - one.amount);
}

// Whether the identity of a set may unwrap with its key.
function access(set) {
  const key = section("keys").get(set.key);
  const vault = section("vaults").get(key?.vault);
  if (set.identity === "none") return ["bad", "no identity"];
  if (!vault || vault.kind === "Https") return ["unknown", "not asked"];
  const policy = vault.policies.find((one) => one.identity === set.principal);
  return policy?.unwraps ? ["good", "may unwrap"] : ["bad", "may not unwrap"];
}

const platformId = () => [...section("identities")].find(([, identity]) => identity.kind === "platform")?.[0] ?? "";

// Nodes with their lines of text. A line with an `ask` can be chosen.
function nodesOf({ groups, keys }) {
  const shown = groups.slice(0, MAX_SETS);
  const columns = [[], [], [], []];
  const edges = [];
  const usedKeys = new Set();
  const note = (url, to, kind) => {
    const version = section("keys").get(url);
    if (!version) return;
    usedKeys.add(version.version ? url.slice(0, url.lastIndexOf("/")) : url);
    edges.push({ from: `version:${url}`, to, kind });
  };
  for (const group of shown) {
    const isPlatform = group.set === PLATFORM;
    const set = section("sets").get(group.set);
    const setId = `set:${group.set}`;
    const groupId = `disks:${group.set}`;
    const rows = [];
    if (isPlatform || set) {
      const principal = isPlatform ? platformId() : set.principal;
      const may = isPlatform ? ["good", "of the platform"] : access(set);
      rows.push({
        id: `identity:${group.set}`,
        text: "identity:",
        state: may,
        ask: { kind: "identity", id: principal, name: isPlatform ? "platform" : `identity of the set ${group.set}` },
      });
    }
    const title = isPlatform ? "platform-managed" : group.set;
    columns[2].push({ id: setId, title, note: set?.autoRotation ? "follows its key" : "", rows, group: groupId });
    for (const url of isPlatform ? group.keys : [set?.key]) if (url) note(url, setId, "active");
    const isOld = (url) => url !== set?.key && !isPlatform;
    for (const url of [...group.keys].filter(isOld)) note(url, groupId, "old");
    for (const url of group.others) note(url, groupId, "old");
    columns[3].push(diskNode(groupId, group));
    edges.push({ from: setId, to: groupId, kind: "active" });
  }
  const word = picture.filter.toLowerCase();
  const unused = { keys: 0, vaults: 0 };
  for (const key of keys.values()) {
    if (!usedKeys.has(key.id)) {
      unused.keys += 1;
      if (!key.name.toLowerCase().includes(word) || unused.keys > MAX_UNUSED) continue;
    }
    columns[1].push(keyNode(key));
    if (key.vault) edges.push({ from: `vault:${key.vault}`, to: `key:${key.id}`, kind: "active" });
  }
  for (const [name, vault] of section("vaults")) {
    if (!edges.some((edge) => edge.from === `vault:${name}`)) {
      unused.vaults += 1;
      if (!name.toLowerCase().includes(word) || unused.vaults > MAX_UNUSED) continue;
    }
    columns[0].push(vaultNode(name, vault));
  }
  if (!picture.filter) columns[2].push(...clientNodes());
  return { columns, edges, left: groups.length - shown.length };
}

function vaultNode(name, vault) {
  const state = vault.problem ? ["bad", "not readable"]
    : vault.isDeleted ? ["bad", "deleted"]
    : vault.kind === "Https" ? ["unknown", "elsewhere"]
    : ["good", vault.kind === "Hsm" ? "in a token" : "here"];
  const ask = { kind: "vault", id: name, name };
  return { id: `vault:${name}`, title: name, state, ask, rows: [] };
}

function keyNode(key) {
  const rows = key.versions.map((version) => ({
    id: `version:${version.url}`,
    text: shortVersion(version.version),
    isMono: true,
    note: version.isLatest ? "latest" : "",
    state: keyState(version),
    ask: { kind: "version", id: version.url, name: `${key.name} ${shortVersion(version.version)}` },
  }));
  return { id: `key:${key.id}`, title: key.name, ask: { kind: "key", id: key.id, name: key.name }, rows };
}

function diskNode(id, group) {
  const states = tonesOf(group.resources);
  const cut = whatIf.cut?.resources?.filter((user) => (user.diskEncryptionSetId ?? PLATFORM) === group.set).length ?? 0;
  const rows = states.slice(0, 4).map(({ state, amount }) => ({ text: amount.toLocaleString("en"), state }));
  if (cut) rows.push({ text: `${cut.toLocaleString("en")} of ${group.resources.length.toLocaleString("en")}`, state: ["bad", "cut off"], isCut: true });
  return { id, title: kindsOf(group.resources), rows, bar: states, show: group.set, cut };
}

// One is named, more are counted.
function kindsOf(resources) {
  if (resources.length === 1) return resources[0][1].name;
  const amount = resources.filter(([, resource]) => resource.kind === "disk").length;
  const frozen = resources.length - amount;
  const words = [amount ? count(amount, "disk") : "", frozen ? count(frozen, "snapshot/image", "snapshots/images") : ""];
  return words.filter(Boolean).join(", ") || "no disk";
}

// Identities of users, who have their disks elsewhere.
function clientNodes() {
  const users = [...section("identities")].filter(([, identity]) => identity.kind === "user");
  return users.slice(0, MAX_SETS).map(([id, identity]) => {
    const vaults = [...section("vaults").values()].filter((vault) => vault.policies.some((one) => one.identity === id && one.unwraps));
    const state = vaults.length ? ["good", `may unwrap in ${vaults.map((vault) => readable(vault.name)).join(", ")}`] : ["idle", "may unwrap nothing"];
    return { id: `client:${id}`, title: identity.name, note: "client elsewhere", rows: [{ id: `client-identity:${id}`, text: "", state, ask: { kind: "identity", id, name: identity.name } }] };
  });
}

const heightOf = (node) => HEAD + node.rows.length * ROW + (node.bar?.length ? 12 : 0) + (node.rows.length ? 6 : 0);

// Gives nodes their places: sets and disks side by side, keys and vaults in the middle of what needs them.
function place({ columns, edges }) {
  const places = new Map();
  let y = 30;
  for (const node of columns[2]) {
    const group = columns[3].find((one) => one.id === node.group);
    const height = Math.max(heightOf(node), group ? heightOf(group) : 0);
    places.set(node.id, { y });
    if (group) places.set(group.id, { y });
    y += height + GAP;
  }
  for (const column of [1, 0]) {
    const wanted = (node) => {
      const ids = new Set([node.id, ...node.rows.map((row) => row.id)]);
      const ys = edges.filter((edge) => ids.has(edge.from) && places.has(edge.to)).map((edge) => places.get(edge.to).y);
      return ys.length ? ys.reduce((sum, one) => sum + one, 0) / ys.length : Infinity;
    };
    const nodes = columns[column].map((node) => [node, wanted(node)]);
    nodes.sort(([one, at], [other, there]) => (at === there ? compareNames(one.title, other.title) : at - there));
    let free = 30;
    for (const [node, at] of nodes) {
      const top = Math.max(free, at === Infinity ? free : at);
      places.set(node.id, { y: top });
      free = top + heightOf(node) + GAP;
    }
    columns[column] = nodes.map(([node]) => node);
    y = Math.max(y, free);
  }
  return { places, height: y };
}

function drawPicture() {
  if (byId("dependencies").hidden) return;
  byId("picture").hidden = picture.isTable;
  byId("picture-table").hidden = !picture.isTable;
  const parts = nodesOf(gather());
  const key = JSON.stringify([parts, picture.isTable, whatIf.asked?.node, Boolean(whatIf.cut)]);
  if (key === picture.drawn) return;
  picture.drawn = key;
  if (picture.isTable) drawPictureTable(parts);
  else drawSvg(parts);
}

function drawSvg(parts) {
  const container = byId("picture");
  const hadFocus = container.contains(document.activeElement);
  const { places, height } = place(parts);
  const anchors = new Map();
  const nodes = makeSvg("g");
  picture.focusable = [[], [], [], []];
  parts.columns.forEach((column, number) => {
    for (const node of column) nodes.append(drawNode(node, number, places.get(node.id).y, anchors));
  });
  const lines = makeSvg("g", { "aria-hidden": "true" });
  for (const edge of parts.edges) lines.append(drawEdge(edge, anchors));
  const heads = COLUMNS.map(({ x, title }) => makeSvg("text", { class: "column-title", x, y: 14, text: title }));
  const svg = makeSvg("svg", { viewBox: `-4 0 1008 ${height}`, class: "dependencies" }, ...heads, lines, nodes);
  const more = parts.left ? make("p", { class: "quiet", text: `and ${count(parts.left, "more set")}: filter by name to see them` }) : null;
  const isEmpty = parts.columns.every((column) => column.length === 0);
  const empty = isEmpty ? make("p", { class: "empty", text: "Nothing has such a name." }) : null;
  container.replaceChildren(...[svg, more, empty].filter(Boolean));
  const all = picture.focusable.flat();
  if (!all.some(({ id }) => id === picture.focus)) picture.focus = all[0]?.id ?? null;
  for (const { id, element } of all) element.setAttribute("tabindex", id === picture.focus ? "0" : "-1");
  if (hadFocus) focusNode(picture.focus);
}

function drawEdge({ from, to, kind }, anchors) {
  const start = anchors.get(from)?.right;
  const end = anchors.get(to)?.left;
  if (!start || !end) return makeSvg("g");
  const middle = (start.x + end.x) / 2;
  return makeSvg("path", { class: "edge", "data-kind": kind, d: `M${start.x} ${start.y}C${middle} ${start.y} ${middle} ${end.y} ${end.x} ${end.y}` });
}

const svgShape = (tone, x, y) => makeSvg("path", { class: "shape", "data-tone": tone, d: TONES[tone], "fill-rule": "evenodd", transform: `translate(${x} ${y})` });

// Texts are cut by their length: to measure them would lay the page out for each.
function cutText(text, most) {
  const shown = readable(text);
  return shown.length > most ? `${shown.slice(0, most - 1)}…` : shown;
}

function drawNode(node, column, y, anchors) {
  const { x, width } = COLUMNS[column];
  const height = heightOf(node);
  const tone = node.state?.[0] ?? worst(node.rows.map((row) => row.state?.[0]).filter(Boolean));
  const group = makeSvg("g", { class: "node", transform: `translate(${x} ${y})`, "data-tone": tone, "data-cut": node.cut ? "" : null });
  const box = makeSvg("rect", { class: "box", width, height, rx: 7 });
  const title = makeSvg("text", { class: "node-title", x: 10, y: 21, text: cutText(node.title, Math.floor(width / 7.4)) });
  const head = makeSvg("g", {}, makeSvg("rect", { class: "hit", x: 2, y: 2, width: width - 4, height: HEAD - 4, rx: 5 }), title);
  if (node.state) {
    head.append(svgShape(node.state[0], width - 20, 11));
  } else if (node.note) {
    head.append(makeSvg("text", { class: "node-note", x: width - 8, y: 21, "text-anchor": "end", text: node.note }));
  }
  group.append(box, head);
  anchors.set(node.id, { left: { x, y: y + 17 }, right: { x: x + width, y: y + 17 } });
  if (node.ask || node.show !== undefined) choosable(head, node, column, x, y, `${readable(node.title)}${node.state ? `, ${node.state[1]}` : ""}`);
  let top = HEAD;
  if (node.bar?.length) {
    let at = 10;
    const whole = node.bar.reduce((sum, entry) => sum + entry.amount, 0);
    for (const entry of node.bar) {
      const share = ((width - 20) * entry.amount) / whole;
      group.append(makeSvg("rect", { class: "share", "data-tone": entry.state[0], x: at, y: top, width: Math.max(share - 1, 1), height: 6 }));
      at += share;
    }
    top += 12;
  }
  for (const row of node.rows) {
    group.append(drawRow(row, { node, column, x, y, top, width, anchors }));
    top += ROW;
  }
  return group;
}

function drawRow(row, { node, column, x, y, top, width, anchors }) {
  const line = makeSvg("g", { transform: `translate(0 ${top})` });
  line.append(makeSvg("rect", { class: "hit", x: 2, y: 0, width: width - 4, height: ROW - 1, rx: 5 }));
  line.append(svgShape(row.state[0], 10, 5));
  const room = Math.floor((width - 34) / 6.6);
  const said = row.isMono ? row.text : [row.text, row.state[1]].filter(Boolean).join(" ");
  line.append(makeSvg("text", { class: row.isMono ? "mono" : "", x: 28, y: 15, text: cutText(said, room) }));
  if (row.isMono) {
    const note = [row.note, row.state[0] === "good" ? "" : row.state[1]].filter(Boolean).join(", ");
    line.append(makeSvg("text", { class: "node-note", x: width - 8, y: 15, "text-anchor": "end", "data-tone": row.state[0], text: note }));
  }
  if (row.id) anchors.set(row.id, { left: { x, y: y + top + 11 }, right: { x: x + width, y: y + top + 11 } });
  if (row.ask) choosable(line, row, column, x, y + top, `${readable(node.title)}: ${[row.text, row.note, row.state[1]].filter(Boolean).join(" ")}`);
  return line;
}

function choosable(element, { id, ask: asked, show }, column, x, y, label) {
  fill(element, {
    class: "choosable",
    role: "button",
    tabindex: "-1",
    "data-node": id,
    "aria-label": asked ? `${label}. What stops without it?` : `${label}. Show the disks`,
    "aria-pressed": asked ? String(whatIf.asked?.node === id) : null,
    onclick: () => choose(id, asked, show),
  }, []);
  picture.focusable[column].push({ id, element, y, asked, show });
}

function choose(id, asked, show) {
  setFocus(id);
  if (asked) askWhatIf({ ...asked, node: id });
  else showDisksOf(show);
}

function setFocus(id) {
  picture.focus = id;
  for (const { id: other, element } of picture.focusable.flat()) element.setAttribute("tabindex", other === id ? "0" : "-1");
}

function focusNode(id) {
  const found = picture.focusable.flat().find((one) => one.id === id);
  if (!found || picture.isTable) return;
  setFocus(id);
  found.element.focus({ preventScroll: false });
}

function pictureKey(event) {
  const column = picture.focusable.findIndex((nodes) => nodes.some(({ id }) => id === picture.focus));
  if (column < 0) return;
  const nodes = picture.focusable[column];
  const at = nodes.findIndex(({ id }) => id === picture.focus);
  const current = nodes[at];
  const beside = (step) => {
    for (let next = column + step; picture.focusable[next]; next += step) {
      const [first, ...rest] = picture.focusable[next];
      if (first) return rest.reduce((best, one) => (Math.abs(one.y - current.y) < Math.abs(best.y - current.y) ? one : best), first);
    }
    return null;
  };
  const moves = {
    ArrowDown: () => nodes[at + 1],
    ArrowUp: () => nodes[at - 1],
    ArrowRight: () => beside(1),
    ArrowLeft: () => beside(-1),
    Home: () => nodes[0],
    End: () => nodes.at(-1),
  };
  if (event.key in moves) {
    event.preventDefault();
    const next = moves[event.key]();
    if (next) focusNode(next.id);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(current.id, current.asked, current.show);
  } else if (event.key === "Escape") {
    clearWhatIf();
  }
}

// The same in rows.
function drawPictureTable({ columns, edges, left }) {
  const button = (row) =>
    row.ask
      ? make("button", { class: "link", type: "button", onclick: () => askWhatIf({ ...row.ask, node: row.id }) }, shape(row.state?.[0] ?? "idle"), make("bdi", { text: [row.title, row.text, row.note].filter(Boolean).map(readable).join(" ") }))
      : make("span", {}, shape(row.state[0]), ` ${row.text} ${row.state[1]}`);
  const needs = (id) => edges.filter((edge) => edge.to === id && edge.from.startsWith("version:")).map((edge) => edge.from);
  const keyNodes = columns[1];
  const lines = columns[2].map((set) => {
    const group = columns[3].find((one) => one.id === set.group);
    const versions = new Set([...needs(set.id), ...(group ? needs(group.id) : [])]);
    const keys = keyNodes.flatMap((key) => key.rows.filter((row) => versions.has(row.id)).map((row) => ({ key, row })));
    const vaults = new Set(keys.map(({ key }) => edges.find((edge) => edge.to === key.id)?.from));
    const cells = [
      ["Set", [nameOf(set.title, { class: "strong" }), ...set.rows.map((row) => make("p", {}, button({ ...row, text: `identity, ${row.state[1]}` })))]],
      ["Keys", keys.map(({ key, row }) => make("p", {}, button({ ...row, title: key.title })))],
      ["Vaults", columns[0].filter((vault) => vaults.has(vault.id)).map((vault) => make("p", {}, button(vault)))],
      ["Disks", group ? [make("button", { class: "link", type: "button", onclick: () => showDisksOf(group.show) }, nameOf(group.title)), ...group.rows.map((row) => make("p", {}, button(row)))] : ["–"]],
    ];
    return make("tr", {}, ...cells.map(([word, content]) => make("td", { "data-head": word }, ...content)));
  });
  const heads = ["Set and identity", "Key versions", "Key vaults", "Disks"].map((word) => make("th", { scope: "col", text: word }));
  const table = make("table", { class: "plain stacked" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines));
  const more = left ? make("p", { class: "quiet", text: `and ${count(left, "more set")}: filter by name to see them` }) : null;
  byId("picture-table").replaceChildren(...[table, more].filter(Boolean));
}
