"use strict";
// What all of the page reads. Texts of the data enter as text nodes only, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const $ = (id) => document.getElementById(id);
const ALL = "all",
  MOST_FOUND = 8,
  MOST_COLOURS = 9;
const PALETTE = ["#4e79a7", "#f28e2b", "#e15759", "#59a14f", "#b07aa1", "#c9a81c", "#3ba7a0", "#ff8fa0", "#9c755f"];
const RAMP = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];
const cold = new Set(data.cold),
  popular = new Set(data.popular);
const count = (n) => n.toLocaleString("en-US");
const cosine = (x, digits = 3) => (x === null ? "–" : x.toFixed(digits).replace("-", "−"));
const hueOf = (key) => `var(--${key})`;

function make(tag, { style, ...settings } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// In place of a picture: the first letters of a title, or the id where there is no title.
const initials = (item) =>
  data.titles[item] === `item ${data.ids[item]}`
    ? [...data.ids[item]].slice(0, 6).join("")
    : (data.titles[item].match(/[\p{L}\p{N}]+/gu) || ["·"])
        .slice(0, 2)
        .map((word) => [...word][0].toUpperCase())
        .join("");
const shot = (item) =>
  make(
    "span",
    { class: "shot", "aria-hidden": "true" },
    pictures[item]
      ? make("img", { src: `data:image/jpeg;base64,${pictures[item]}`, alt: "", decoding: "async" })
      : initials(item),
  );
const wordsOf = (field, item) =>
  field.words
    ? field.values[item].map((k) => field.words[k])
    : field.numbers[item] === null
      ? []
      : [asText(field, field.numbers[item])];
const asText = (field, value) => (field.counts ? count(value) : String(value));
const main = data.fields.findIndex((field) => field.words); // the field that stands under titles
