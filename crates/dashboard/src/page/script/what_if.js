// What stops without a key, a vault or an identity.

const whatIf = { asked: null, cut: null, number: 0 };

const LOSSES = {
  key: "this key",
  version: "this key version",
  vault: "this key vault",
  identity: "this identity",
};

// Asks for the loss of `{ kind, id, name }`.
async function askWhatIf(asked) {
  whatIf.asked = asked;
  whatIf.cut = null;
  whatIf.number += 1;
  const { number } = whatIf;
  drawWhatIf();
  drawPicture();
  // Where the answer is not beside the picture, it is gone to.
  if (matchMedia("(max-width: 1000px)").matches) byId("what-if").scrollIntoView({ block: "nearest" });
  const parameter = asked.kind === "version" ? "key" : asked.kind;
  try {
    const cut = await ask(`/api/what-if?${parameter}=${encodeURIComponent(asked.id)}`);
    if (number !== whatIf.number) return;
    whatIf.cut = cut;
  } catch (error) {
    if (number !== whatIf.number) return;
    whatIf.cut = { error: error.message };
  }
  drawWhatIf();
  drawPicture();
  say(byId("what-if").querySelector(".verdict")?.textContent ?? "");
}

function clearWhatIf() {
  whatIf.number += 1;
  whatIf.asked = null;
  whatIf.cut = null;
  drawWhatIf();
  drawPicture();
}

// Names beyond these are counted.
const MAX_NAMES = 60;

function namesOf(title, users, tone) {
  if (users.length === 0) return null;
  const items = users.slice(0, MAX_NAMES).map((user) => make("li", {}, shape(tone), nameOf(user.name)));
  if (users.length > MAX_NAMES) {
    items.push(make("li", { class: "quiet", text: `and ${(users.length - MAX_NAMES).toLocaleString("en")} more` }));
  }
  return [make("h3", { text: `${title} (${users.length.toLocaleString("en")})` }), make("ul", { class: "names" }, ...items)];
}

const ANSWERS = {
  yes: ["good", "safe to disable, as far as is known"],
  no: ["bad", "not safe to disable"],
  unknown: ["unknown", "not known whether it is safe to disable"],
};

function verdict(cut, stops, others) {
  if (stops.length > 0) return `${count(stops.length, "disk")} in use would stop`;
  if (others.length > 0) return `Nothing in use would stop; ${others.length.toLocaleString("en")} could not be used again`;
  return cut.safeToDisable === "yes" ? "Nothing would stop" : "Nothing of this host would stop, as far as is known";
}

function drawWhatIf() {
  const panel = byId("what-if");
  const { asked, cut } = whatIf;
  panel.toggleAttribute("data-asked", Boolean(asked));
  const title = make("h2", { id: "what-if-title", text: asked ? `What stops without ${LOSSES[asked.kind]}?` : "What stops without it?" });
  if (!asked) {
    const hint = "Choose a key, a key version, a vault or an identity: here stands which disks would be cut off without it. Nothing is changed.";
    panel.replaceChildren(title, make("p", { class: "quiet", text: hint }), legend());
    return;
  }
  const close = make("button", { class: "button", type: "button", text: "Close", onclick: closeWhatIf });
  const head = [make("div", { class: "panel-head" }, title, close), make("p", { class: "panel-name" }, nameOf(asked.name))];
  if (!cut) {
    panel.replaceChildren(...head, make("p", { class: "quiet", text: "Looking …" }));
    return;
  }
  if (cut.error) {
    panel.replaceChildren(...head, make("p", { class: "verdict", text: `It is not known: ${readable(cut.error)}` }));
    return;
  }
  const isInUse = (user) => user.type === "disk" && ["Attached", "SyncFailed"].includes(user.diskState);
  const stops = cut.resources.filter(isInUse);
  const idle = cut.resources.filter((user) => user.type === "disk" && !isInUse(user));
  const frozen = cut.resources.filter((user) => user.type !== "disk");
  const sets = cut.diskEncryptionSets.map((name) => ({ name }));
  const reasons = cut.reasons.slice(0, MAX_NAMES).map((reason) => make("li", { text: readable(reason) }));
  const parts = [
    make("p", { class: "verdict", "data-tone": stops.length ? "bad" : ANSWERS[cut.safeToDisable][0], text: verdict(cut, stops, [...idle, ...frozen]) }),
    badge(ANSWERS[cut.safeToDisable]),
    namesOf("Stop at their next key check", stops, "bad"),
    namesOf("Could not be attached", idle, "warn"),
    namesOf("Snapshots and images that could not be read", frozen, "warn"),
    namesOf("Sets with which no disk could be made", sets, "warn"),
    reasons.length > 0 && [make("h3", { text: "Elsewhere, or not known" }), make("ul", { class: "reasons" }, ...reasons)],
  ];
  panel.replaceChildren(...head, ...parts.flat().filter(Boolean));
}

function closeWhatIf() {
  const id = whatIf.asked?.node;
  clearWhatIf();
  focusNode(id);
}

function legend() {
  const entry = (tone, word) => make("li", {}, shape(tone), make("span", { text: word }));
  return make("ul", { class: "names legend-list" },
    entry("good", "granted, served"),
    entry("warn", "something is the matter"),
    entry("bad", "stopped, or cannot be used"),
    entry("unknown", "not known"),
    entry("idle", "not in use"),
  );
}
