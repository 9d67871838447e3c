/* Shared by all parts of a page. All text goes in as text nodes, never as markup. */
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const element = (create) => (tag, attributes = {}, ...children) => {
  const node = create(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...children);
  return node;
};
const el = element((tag) => document.createElement(tag));
const svg = element((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const count = (value) => value.toLocaleString("en-US");

/** A value of a curve in four digits, with an exponent only where it is shorter. */
function figure(value) {
  if (value === null || value === undefined) return "not a number";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** What the reader has chosen outlives a reload of a running report; a browser that forbids storage forgets. */
const choices = {
  key: `report ${location.pathname}`,
  read() {
    try { return JSON.parse(sessionStorage.getItem(this.key)) || {}; } catch { return {}; }
  },
  write(more) {
    try { sessionStorage.setItem(this.key, JSON.stringify({ ...this.read(), ...more })); } catch { /* forgotten */ }
  },
};

/** Links to what the page has. */
function showContents() {
  const sections = [...document.querySelectorAll("main > section[aria-labelledby]:not([hidden])")];
  $("contents").replaceChildren(...sections.map((section) => el("a", { href: `#${section.id}` }, section.querySelector("h2").textContent)));
  $("contents").hidden = sections.length < 2;
}
