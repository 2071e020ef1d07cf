// Making and changing elements. Text goes in as text, and never becomes HTML.

const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

const makeSvg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A name that somebody has chosen.
const nameOf = (text, attributes) => make("bdi", { ...attributes, text: readable(text) });

// The shape of a tone.
function shape(tone) {
  const icon = makeSvg("svg", { class: "shape", viewBox: "0 0 12 12", "aria-hidden": "true", "data-tone": tone });
  icon.append(makeSvg("path", { d: TONES[tone], "fill-rule": "evenodd" }));
  return icon;
}

// A state: shape, colour and word.
const badge = ([tone, word], attributes) =>
  make("span", { class: "badge", "data-tone": tone, ...attributes }, shape(tone), make("span", { text: word }));

// Text is only written where it changes, so that nothing is laid out for nothing.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setAttribute(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// A number with its name, and a line below.
function tile(name, value, note, extra) {
  return make(
    "div",
    { class: "tile" },
    make("p", { class: "tile-name", text: name }),
    make("p", { class: "tile-value" }, value),
    make("p", { class: "tile-note" }, note ?? ""),
    extra,
  );
}

// Shares of a whole, with words beside for who sees no colours.
function shares(parts, label) {
  const whole = parts.reduce((sum, part) => sum + part.value, 0);
  const bar = makeSvg("svg", { class: "shares", viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img" });
  bar.setAttribute("aria-label", label);
  let at = 0;
  for (const part of parts.filter((one) => one.value > 0)) {
    const width = (100 * part.value) / whole;
    const drawn = Math.max(width - 0.4, 0.3);
    bar.append(makeSvg("rect", { x: at, y: 0, width: drawn, height: 6, class: "share", "data-tone": part.tone }));
    at += width;
  }
  return bar;
}

// Chips of which several may be pressed. `toggled` is told the set of those that are.
function chips(container, choices, pressed, toggled) {
  const buttons = new Map();
  for (const [value, word] of choices) {
    const amount = make("span", { class: "amount" });
    const button = make(
      "button",
      {
        class: "chip",
        type: "button",
        "aria-pressed": String(pressed.has(value)),
        onclick: () => {
          if (!pressed.delete(value)) pressed.add(value);
          button.setAttribute("aria-pressed", String(pressed.has(value)));
          toggled(pressed);
        },
      },
      word,
      amount,
    );
    buttons.set(value, amount);
    container.append(button);
  }
  return (value, text) => setText(buttons.get(value), text);
}

// Said to who hears the page; what comes fast is said once.
let saying;
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => setText(byId("said"), text), 400);
}

// The element with the attribute that an event came from.
const origin = (event, attribute) => event.target.closest?.(`[${attribute}]`)?.getAttribute(attribute);
