// States in words, tones and shapes, and numbers as people read them.

// A tone is a colour and a shape: neither says anything that the other, or the word beside it, does not.
const TONES = {
  good: "M6 1.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9z",
  idle: "M6 1.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9zm0 1.6a2.9 2.9 0 1 1 0 5.8a2.9 2.9 0 1 1 0-5.8z",
  warn: "M6 .8L11.6 10.8H.4z",
  bad: "M1.2 2.9L2.9 1.2L6 4.3L9.1 1.2L10.8 2.9L7.7 6L10.8 9.1L9.1 10.8L6 7.7L2.9 10.8L1.2 9.1L4.3 6z",
  unknown: "M6 .6L11.4 6L6 11.4L.6 6zm0 2.2L2.8 6L6 9.2L9.2 6z",
};

// From bad to good.
const TONE_ORDER = ["bad", "warn", "unknown", "good", "idle"];

// What an attached disk does, as its attach says.
const STANDINGS = {
  served: ["good", "served"],
  keyRevoked: ["bad", "key revoked"],
  keyUnreachable: ["warn", "key unreachable"],
  spaceFull: ["bad", "space full"],
  stalled: ["bad", "stalled"],
  jobHeldUp: ["warn", "job held up"],
  silent: ["unknown", "silent"],
  awaited: ["idle", "awaited"],
  letGo: ["idle", "let go"],
  asked: ["unknown", "asked"],
};

// What the header and the files of a disk say.
const DISK_STATES = {
  Unattached: ["idle", "unattached"],
  Attached: ["good", "attached"],
  Dirty: ["warn", "dirty"],
  SyncFailed: ["bad", "sync failed"],
  Creating: ["idle", "creating"],
  Deleting: ["idle", "deleting"],
  Damaged: ["bad", "damaged"],
};

const KEY_STATES = {
  enabled: ["good", "enabled"],
  disabled: ["bad", "disabled"],
  expired: ["bad", "expired"],
  notYetValid: ["warn", "not yet valid"],
  deleted: ["bad", "deleted"],
  missing: ["bad", "missing"],
  notKnown: ["unknown", "not asked"],
};

const TOPICS = [
  ["key", "Keys"],
  ["access", "Access"],
  ["disk", "Disks and DEKs"],
  ["event", "Events"],
  ["vault", "Vaults and logs"],
  ["use", "Uses of keys"],
];

const DAY = 86400;

// A number with three digits.
function digits(number) {
  if (number >= 100) return String(Math.round(number));
  if (number >= 10) return number.toFixed(1).replace(/\.0$/, "");
  return number.toFixed(2).replace(/\.?0+$/, "");
}

function inUnits(number, step, units) {
  let unit = 0;
  while (number >= step && unit < units.length - 1) {
    number /= step;
    unit += 1;
  }
  return `${digits(number)} ${units[unit]}`;
}

const bytes = (number) =>
  number === null || number === undefined ? "–" : inUnits(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);

const byteRate = (number) => (number ? inUnits(number, 1000, ["B/s", "kB/s", "MB/s", "GB/s"]) : "–");

const rate = (number) => (number ? inUnits(number, 1000, ["", "k", "M"]).trim() : "–");

const latency = (micros) =>
  micros === null || micros === undefined ? "–" : inUnits(micros, 1000, ["µs", "ms", "s"]);

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const percent = (part, whole) => (whole > 0 ? `${digits((100 * part) / whole)} %` : "–");

const now = () => Math.floor(Date.now() / 1000);

// How long ago, or until when.
function ago(seconds) {
  const past = Math.round(now() - seconds);
  const span = Math.abs(past);
  const words =
    span < 60 ? `${span} s`
    : span < 3600 ? `${Math.round(span / 60)} min`
    : span < 2 * DAY ? `${Math.round(span / 3600)} h`
    : `${Math.round(span / DAY)} days`;
  return past >= 0 ? `${words} ago` : `in ${words}`;
}

const pad = (number) => String(number).padStart(2, "0");

function clock(date) {
  return `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

function day(date) {
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
}

const timeOf = (seconds) => {
  const date = new Date(seconds * 1000);
  return `${day(date)} ${clock(date)}`;
};

// A name as it is safe to read: what cannot be seen, or turns the direction of what follows, is named. The browser makes
// no HTML of it anyway.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu;

function readable(text) {
  const named = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;
  return String(text ?? "").replace(UNSEEN, named);
}

// A version of a key is 32 digits, of which eight tell it apart.
const shortVersion = (version) => (version ? readable(version).slice(0, 8) : "any version");

// `DiskEncryptionSetCreate` as words.
const inWords = (name) =>
  readable(name)
    .replace(/([a-z])([A-Z])/g, "$1 $2")
    .replace(/^Dek\b/, "DEK");

const compareNames = new Intl.Collator("en", { numeric: true }).compare;
