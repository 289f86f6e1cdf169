"use strict";
// Numbers, names and colours as the views show them.

const PREFIXES = { "-3": "n", "-2": "µ", "-1": "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P" };

function quantity(value, unit) {
  if (value === null || value === undefined) return "not known";
  if (value === 0) return `0 ${unit}`;
  const power = Math.floor(Math.log10(Math.abs(value)) / 3 + 1e-9);
  if (!(power in PREFIXES)) return `${value.toExponential(3)} ${unit}`;
  return `${Number((value / 1000 ** power).toPrecision(4))} ${PREFIXES[power]}${unit}`;
}

function percent(share, digits = 1) {
  return share === null || share === undefined ? "not known" : `${(100 * share).toFixed(digits)} %`;
}

function change(share) {
  return `${share >= 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(1)} %`;
}

// The unit in which a run of this length is drawn, and how many seconds it has.
function timeUnit(seconds) {
  if (seconds < 300) return [1, "s"];
  if (seconds < 3 * 3600) return [60, "min"];
  return seconds < 4 * 86400 ? [3600, "h"] : [86400, "days"];
}

// Names come from users: a tooltip is HTML.
function escaped(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (sign) => signs[sign]);
}

function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[high] - value) < Math.abs(sorted[low] - value) ? high : low;
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ink: of("ink"), soft: of("soft"), line: of("line"), card: of("card"), banner: of("banner") };
}

// Points of a line: pairs, with a gap where nothing is known.
function points(at, values) {
  return at.map((place, row) => [place, values[row]]);
}
