// What disks may take, what they take, and what they share.

const capacity = { drawn: "" };

function drawCapacity() {
  if (byId("capacity").hidden) return;
  const resources = [...section("resources").values()];
  const layers = [...section("layers").values()];
  const key = JSON.stringify([model.structure, layers, [...section("space")]]);
  if (key === capacity.drawn) return;
  capacity.drawn = key;
  const all = resources.filter((resource) => resource.kind === "disk");
  const sum = (of) => resources.reduce((total, resource) => total + (of(resource) ?? 0), 0);
  const provisioned = all.reduce((total, disk) => total + disk.size, 0);
  const whole = sum((resource) => resource.data);
  const saved = layers.reduce((total, layer) => total + (layer.data ?? 0) * (layer.users - 1), 0);
  const data = whole - saved;
  const unread = resources.filter((resource) => resource.data === null).length;
  byId("capacity-tiles").replaceChildren(
    tile("Provisioned", bytes(provisioned), `in ${count(all.length, "disk")}`),
    tile("Data", bytes(data), `${percent(data, provisioned)} of what is provisioned; each layer once`),
    tile("Shared", bytes(saved), "would be stored again without clones, snapshots and images"),
    tile("Without sharing", bytes(whole), unread ? `${count(unread, "map")} not readable` : "data of all, each by itself"),
  );
  drawSpace();
  drawShared(layers);
  drawLargest(resources);
}

const bar = (part, most, label) => {
  const svg = makeSvg("svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.append(makeSvg("rect", { class: "meter-whole", width: 100, height: 6 }));
  svg.append(makeSvg("rect", { class: "meter-part", width: most > 0 ? Math.min((100 * part) / most, 100) : 0, height: 6 }));
  return svg;
};

function plainTable(heads, lines, empty) {
  if (lines.length === 0) return make("p", { class: "empty", text: empty });
  const head = make("tr", {}, ...heads.map(([word, kind]) => make("th", { scope: "col", class: kind, text: word })));
  const body = lines.map((cells) => make("tr", {}, ...cells.map((cell, at) => make("td", { class: heads[at][1] }, cell))));
  return make("table", { class: "plain" }, make("thead", {}, head), make("tbody", {}, ...body));
}

function drawSpace() {
  const lines = [...section("space")].map(([path, { available, total }]) => [
    nameOf(path),
    bar(total - available, total, `${percent(total - available, total)} in use`),
    `${bytes(available)} free of ${bytes(total)}`,
  ]);
  byId("space").replaceChildren(plainTable([["Directory", "name"], ["In use", "wide-only"], ["", "number"]], lines, "Nothing is known."));
}

function drawShared(layers) {
  const by = (layer) => (layer.data ?? 0) * (layer.users - 1);
  layers.sort((one, other) => by(other) - by(one));
  const lines = layers.slice(0, 12).map((layer) => [
    make("span", {}, nameOf(layer.name ?? "a layer that is no image's"), make("span", { class: "kind", text: layer.kind ? ` ${layer.kind}` : "" })),
    layer.users.toLocaleString("en"),
    bytes(layer.data),
    bytes(by(layer)),
  ]);
  const heads = [["Layer of", "name"], ["Shared by", "number"], ["Data", "number"], ["Saved", "number"]];
  byId("shared").replaceChildren(plainTable(heads, lines, "No layer is shared."));
}

function drawLargest(resources) {
  const sorted = resources.sort((one, other) => other.used - one.used).slice(0, 15);
  const most = sorted[0]?.used ?? 0;
  const lines = sorted.map((resource) => [
    make("span", {}, nameOf(resource.name), make("span", { class: "kind", text: resource.kind === "disk" ? "" : ` ${resource.kind}` })),
    bar(resource.used, most, bytes(resource.used)),
    bytes(resource.used),
    bytes(resource.shared),
    bytes(resource.data),
    bytes(resource.size),
  ]);
  const heads = [["Name", "name"], ["", "wide-only"], ["On storage", "number"], ["Shared", "number wide-only"], ["Data", "number"], ["Size", "number wide-only"]];
  byId("largest").replaceChildren(plainTable(heads, lines, "There are no disks."));
}
