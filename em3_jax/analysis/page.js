// The page: tables, search, an item, its neighbours, the legend. Texts of the data enter as text nodes only, never as markup.
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

const initials = (title) =>
  (title.match(/[\p{L}\p{N}]+/gu) || ["·"])
    .slice(0, 2)
    .map((word) => [...word][0].toUpperCase())
    .join("");
const shot = (item) =>
  make(
    "span",
    { class: "shot", "aria-hidden": "true" },
    pictures[item]
      ? make("img", { src: `data:image/jpeg;base64,${pictures[item]}`, alt: "", decoding: "async" })
      : initials(data.titles[item]),
  );
const wordsOf = (field, item) =>
  field.words
    ? field.values[item].map((k) => field.words[k])
    : field.numbers[item] === null
      ? []
      : [asText(field, field.numbers[item])];
const asText = (field, value) => (field.counts ? count(value) : String(value));
const main = data.fields.findIndex((field) => field.words); // the field that stands under titles

// tables
const ABOUT_TABLES = {
  8: [
    "Cold items: do neighbours by ID look and read alike?",
    "material similarity",
    (t) =>
      `For items with 1 to ${count(data.cold_most)} training showings: cosine with the ${t.neighbours} nearest by ID embedding, ` +
      "measured in the frozen content space.",
  ],
  9: [
    "Popular items: are neighbours by content liked by the same people?",
    "behavioural similarity",
    (t) =>
      `For the ${Math.round(data.popular_share * 100)} % of items with most training clicks: cosine with the ${t.neighbours} ` +
      "nearest by content embedding, measured in the ID space of the baseline.",
  ],
};
function drawTable(table) {
  const [title, name, what] = ABOUT_TABLES[table.table];
  const numbers = [table.chance, 0, ...table.rows.flatMap((row) => [row.low ?? row.mean, row.high ?? row.mean])];
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const room = (high - low || 1) * 0.06;
  const place = (value) => `${(100 * (value - low + room)) / (high - low + 2 * room)}%`;
  const plot = (row) =>
    make(
      "div",
      { class: "track", style: { "--hue": row ? hueOf(row.space) : "" } },
      make("i", { class: "at", style: { left: place(table.chance) } }),
      row && row.low !== null
        ? make("i", { class: "band", style: { left: place(row.low), right: `calc(100% - ${place(row.high)})` } })
        : null,
      row ? make("i", { class: "mean", style: { left: place(row.mean) } }) : null,
    );
  const { mean, p } = table.difference,
    sure = p !== null && p < 0.05;
  const change =
    table.gain !== null
      ? `${mean < 0 ? "−" : "+"}${Math.abs(100 * table.gain).toFixed(1)} %`
      : `${mean < 0 ? "−" : "+"}${Math.abs(mean).toFixed(3)}`;
  const line = (cls, label, tip, row, value, gain) =>
    make(
      "tr",
      { class: cls },
      make("th", { scope: "row", title: tip }, label),
      make("td", { class: "plot" }, plot(row)),
      make("td", { class: "value" }, cosine(value)),
      make("td", { class: gain && sure ? "gain sure" : "gain" }, gain || ""),
    );
  const range = (row) => (row.low === null ? "" : `95 % interval ${cosine(row.low)} to ${cosine(row.high)}`);
  const text =
    p === null
      ? ""
      : `; difference ${cosine(mean)} (${cosine(table.difference.low)} to ${cosine(table.difference.high)}), p ${p < 1e-4 ? "< 0.0001" : `= ${p.toPrecision(2)}`}`;
  return make(
    "article",
    { class: "panel" },
    make("p", { class: "number" }, `Table ${table.table} · ${name}`),
    make("h2", {}, title),
    make("p", { class: "what" }, what(table)),
    make(
      "table",
      {},
      make(
        "tbody",
        {},
        line("chance", "Any by chance", "", null, table.chance, null),
        ...table.rows.map((row, k) => line("", row.name, range(row), row, row.mean, k ? change : null)),
      ),
    ),
    make(
      "p",
      { class: "foot" },
      `${count(table.sample)} of ${count(table.items)} such items, neighbours among ${count(table.pool)}${text}. ` +
        "Bands: 95 % intervals over items of one run each.",
    ),
  );
}

// search
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const searchable = data.titles.map((title) => ` ${plain(title).replace(/[^\p{L}\p{N}]+/gu, " ")}`);
let found = [],
  active = 0;
function search(text) {
  const exact = plain(text.trim()),
    asked = exact.replace(/[^\p{L}\p{N}]+/gu, " ").trim();
  const ranked = [];
  if (!exact) return ranked;
  const parts = asked.split(" ");
  data.titles.forEach((title, item) => {
    const words = searchable[item];
    let rank = 9;
    if (plain(data.ids[item]) === exact) rank = 0;
    else if (asked && words.startsWith(` ${asked}`)) rank = 1;
    else if (asked && words.includes(` ${asked}`)) rank = 2;
    else if (plain(title).includes(exact) || (asked && words.includes(asked))) rank = 3;
    else if (asked && parts.every((part) => words.includes(` ${part}`))) rank = 4;
    if (rank < 9) ranked.push([rank, item]);
  });
  ranked.sort((a, b) => a[0] - b[0] || data.clicks[b[1]] - data.clicks[a[1]] || a[1] - b[1]);
  return ranked.map(([, item]) => item);
}
function showFound() {
  const text = $("search").value,
    all = search(text),
    list = $("found");
  found = all.slice(0, MOST_FOUND);
  active = Math.min(active, Math.max(found.length - 1, 0));
  list.replaceChildren(
    ...found.map((item, k) =>
      make(
        "li",
        {
          role: "option",
          id: `found-${k}`,
          "aria-selected": String(k === active),
          onpointerdown: (event) => event.preventDefault(),
          onclick: () => take(item),
        },
        shot(item),
        make("span", {}, make("b", {}, data.titles[item]), make("small", {}, subtitle(item))),
      ),
    ),
  );
  if (text.trim() && !found.length) list.append(make("li", { class: "none" }, `No title here holds “${text.trim()}”.`));
  if (all.length > found.length)
    list.append(make("li", { class: "none" }, `and ${count(all.length - found.length)} more: type on`));
  list.hidden = !text.trim() || document.activeElement !== $("search");
  $("search").setAttribute("aria-expanded", String(!list.hidden));
  if (found.length && !list.hidden) $("search").setAttribute("aria-activedescendant", `found-${active}`);
  else $("search").removeAttribute("aria-activedescendant");
}
function take(item) {
  $("search").value = "";
  $("search").blur();
  showFound();
  go({ item });
}
$("search").addEventListener("input", () => {
  active = 0;
  showFound();
});
$("search").addEventListener("focus", () => {
  // Room for what is found, above a phone's keyboard, once the browser's own scrolling is over.
  if (window.innerWidth < 760) setTimeout(() => $("search").parentElement.scrollIntoView({ behavior: "instant" }), 250);
  showFound();
});
$("search").addEventListener("blur", showFound);
$("search").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    active = (active + (event.key === "ArrowDown" ? 1 : found.length - 1)) % Math.max(found.length, 1);
    showFound();
    $(`found-${active}`)?.scrollIntoView({ block: "nearest" });
  } else if (event.key === "Enter" && found.length) take(found[active]);
  else if (event.key === "Escape") {
    $("search").value = "";
    $("search").blur();
  }
});
document.addEventListener("keydown", (event) => {
  if (
    event.key !== "/" ||
    event.ctrlKey ||
    event.metaKey ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)
  )
    return;
  event.preventDefault();
  $("search").focus();
});
for (const [id, items] of [
  ["any-popular", data.popular],
  ["any-cold", data.cold],
]) {
  $(id).hidden = !items.length;
  $(id).addEventListener("click", () => {
    const others = items.filter((item) => item !== state.item);
    if (others.length) go({ item: others[Math.floor(Math.random() * others.length)] });
  });
}

// the item and its neighbours
const subtitle = (item) => (main < 0 ? `item ${data.ids[item]}` : wordsOf(data.fields[main], item).join(", ") || "–");
function showItem(item) {
  const badges = [];
  if (cold.has(item)) badges.push(make("span", { class: "badge cold" }, "cold"));
  if (popular.has(item)) badges.push(make("span", { class: "badge popular" }, "popular"));
  if (!data.shown[item]) badges.push(make("span", { class: "badge" }, "never shown in training"));
  const facts = data.fields
    .filter((field) => !field.counts)
    .map((field) => [field.name, wordsOf(field, item).join(", ")]);
  facts.push(...Object.entries(data.texts).map(([name, texts]) => [name, texts[item]]));
  facts.push(
    ["clicks", `${count(data.clicks[item])} in training`],
    ["showings", `${count(data.shown[item])} in training`],
    ["id", data.ids[item]],
  );
  $("item").replaceChildren(
    shot(item),
    make("h3", {}, data.titles[item]),
    make("div", { class: "badges" }, ...badges),
    make(
      "dl",
      {},
      ...facts.filter(([, text]) => text).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]),
    ),
  );
}
function tile(item, score, own) {
  const words = main < 0 ? [] : wordsOf(data.fields[main], item),
    shared = new Set(main < 0 ? [] : wordsOf(data.fields[main], own));
  const sub = words.flatMap((word, k) => [k ? ", " : "", shared.has(word) ? make("b", {}, word) : word]);
  return make(
    "li",
    {},
    make(
      "button",
      {
        type: "button",
        class: "tile",
        "data-item": item,
        title: data.titles[item],
        onclick: () => go({ item, scroll: true }),
      },
      shot(item),
      make("span", { class: "score" }, cosine(score, 2), make("i", { style: { "--cosine": Math.max(score, 0) } })),
      make("span", { class: "name" }, data.titles[item]),
      make("span", { class: "sub" }, ...sub),
    ),
  );
}
function tiles(space, item, cls) {
  const [places, scores] = data.neighbours[space][item];
  const isIds = data.spaces[space].key.endsWith("ids");
  if (!places.length) {
    return make(
      "p",
      { class: "absent" },
      isIds
        ? "Training never showed this item: its ID has learnt nothing, and has no place among IDs."
        : "This item has no content, and no place among those that have.",
    );
  }
  return make("ol", { class: cls }, ...places.map((place, k) => tile(place, scores[k], item)));
}
function showNeighbours({ item, space }) {
  const place = data.spaces.findIndex(({ key }) => key === space),
    box = $("neighbours");
  if (place >= 0) {
    $("about").textContent = `${data.spaces[place].name}: ${data.spaces[place].about}.`;
    box.style.setProperty("--hue", hueOf(space));
    box.replaceChildren(tiles(place, item, "grid"));
    return;
  }
  $("about").textContent = "The nearest items in each space, with their cosine.";
  box.replaceChildren(
    ...data.spaces.map(({ key, name }, k) =>
      make("div", { class: "row", style: { "--hue": hueOf(key) } }, make("h3", {}, name), tiles(k, item, "strip")),
    ),
  );
}
function drawSpaces() {
  const choices = [...data.spaces, { key: ALL, name: "Side by side" }];
  $("spaces").replaceChildren(
    ...choices.map(({ key, name }) =>
      make(
        "label",
        { class: key, style: { "--hue": key === ALL ? "" : hueOf(key) } },
        make("input", { type: "radio", name: "space", value: key, onchange: () => go({ space: key }) }),
        make("span", {}, name),
      ),
    ),
  );
}

// the map
const extent = [1, 1]; // of the widest map, in both directions
for (const [x, y] of data.maps.flatMap((places) => (places || []).filter((place) => place.length))) {
  extent[0] = Math.max(extent[0], Math.abs(2 * x - data.side));
  extent[1] = Math.max(extent[1], Math.abs(2 * y - data.side));
}
const map = makeMap({ canvas: $("map"), side: data.side, extent, describe, pick: (item) => go({ item }) });
let alone = null; // the value of the legend that is shown alone
function describe(item, x, y) {
  const tip = $("tip");
  tip.hidden = item < 0;
  if (item < 0) return;
  tip.replaceChildren(
    shot(item),
    make("span", {}, make("b", {}, data.titles[item]), make("small", {}, subtitle(item))),
  );
  const box = $("canvas-box").getBoundingClientRect();
  tip.style.left = `${Math.max(Math.min(x + 14, box.width - tip.offsetWidth - 8), 8)}px`;
  tip.style.top = `${y + 14 + tip.offsetHeight > box.height ? Math.max(y - tip.offsetHeight - 14, 8) : y + 14}px`;
}
const ramp = (share) => {
  const at = share * (RAMP.length - 1),
    k = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[k].map((low, c) => Math.round(low + (RAMP[k + 1][c] - low) * (at - k))).join(",")})`;
};
function paint() {
  const field = data.fields[Number($("field").value)],
    grey = getComputedStyle(document.body).getPropertyValue("--dot");
  const legend = [];
  if (field.words) {
    const first = field.values.map((values) => (values.length ? values[0] : -1));
    const sizes = new Map();
    for (const value of first) if (value >= 0) sizes.set(value, (sizes.get(value) || 0) + 1);
    const order = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const kept = order
      .slice(0, order.length === MOST_COLOURS + 1 ? MOST_COLOURS + 1 : MOST_COLOURS)
      .map(([value]) => value);
    const colourOf = new Map(kept.map((value, k) => [value, PALETTE[k] || grey]));
    const group = first.map((value) => (colourOf.has(value) ? value : -2));
    const rest = group.filter((value) => value === -2).length;
    const entry = (value, name, colour, size) =>
      make(
        "button",
        {
          type: "button",
          "aria-pressed": String(alone === value),
          onclick: () => {
            alone = alone === value ? null : value;
            paint();
          },
        },
        make("i", { style: { background: colour } }),
        make("span", { title: name }, name),
        make("small", {}, count(size)),
      );
    legend.push(...kept.map((value) => entry(value, field.words[value], colourOf.get(value), sizes.get(value))));
    if (rest) legend.push(entry(-2, order.length > kept.length ? "others" : "none", grey, rest));
    map.paint(
      group.map((value) => colourOf.get(value) || grey),
      alone === null ? null : (item) => group[item] !== alone,
    );
  } else {
    const known = field.numbers.filter((value) => value !== null).sort((a, b) => a - b),
      last = known.length - 1;
    const share = (value) => (known.indexOf(value) + known.lastIndexOf(value)) / (2 * last || 1); // by rank: few are far from the rest
    const shares = new Map([...new Set(known)].map((value) => [value, share(value)]));
    const stops = Array.from({ length: 9 }, (_, k) => ramp(k / 8)).join(",");
    const ends = last < 0 ? [] : [known[0], known[Math.floor(last / 2)], known[last]];
    legend.push(
      make("div", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops})` } }),
      make("div", { class: "ends" }, ...ends.map((value) => make("span", {}, asText(field, value)))),
    );
    map.paint(
      field.numbers.map((value) => (value === null ? grey : ramp(shares.get(value)))),
      null,
    );
  }
  $("legend").replaceChildren(...legend);
}
function showOnMap({ item, space }) {
  const place = Math.max(
      data.spaces.findIndex(({ key }) => key === space),
      0,
    ),
    { key, name } = data.spaces[place];
  const hue = getComputedStyle(document.body).getPropertyValue(`--${key}`);
  $("map-space").textContent = name;
  map.places(data.maps[place] || data.titles.map(() => []));
  map.choose(item, data.neighbours[place][item][0], hue);
  const here = data.maps[place] && data.maps[place][item].length;
  $("picked").replaceChildren(
    make("button", { type: "button", onclick: () => $("explore-title").scrollIntoView() }, data.titles[item]),
    here
      ? ` and its ${data.neighbours[place][item][0].length} nearest. Hover or tap a point for its title, pick it to go there.`
      : " has no place in this space.",
  );
}

// state: an item and a space, in the address
const state = { item: data.start, space: data.spaces[0].key };
const address = ({ item, space }) => `#item=${encodeURIComponent(data.ids[item])}&space=${space}`;
function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)),
    item = data.ids.indexOf(asked.get("item"));
  const known = [ALL, ...data.spaces.map(({ key }) => key)];
  return {
    item: item >= 0 ? item : state.item,
    space: known.includes(asked.get("space")) ? asked.get("space") : state.space,
  };
}
function show(next) {
  Object.assign(state, next);
  showItem(state.item);
  showNeighbours(state);
  showOnMap(state);
  for (const input of $("spaces").querySelectorAll("input")) input.checked = input.value === state.space;
  document.title = `${data.titles[state.item]} · item neighbours`;
}
function go({ item = state.item, space = state.space, scroll = false }) {
  const other = item !== state.item;
  show({ item, space });
  if (other) location.hash = address(state);
  else location.replace(address(state));
  if (scroll && $("item").getBoundingClientRect().top < 0) $("item").scrollIntoView({ block: "start" });
}
window.addEventListener("hashchange", () => {
  const next = fromAddress();
  if (next.item !== state.item || next.space !== state.space) show(next);
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  paint();
  showOnMap(state);
});

const number = data.titles.length;
$("dataset").textContent = data.dataset;
$("lead").textContent =
  `Each item is a vector, and near vectors are alike: to the encoder, to ${data.model}, or to the people who click. ` +
  `${count(data.total)} items${number < data.total ? `, ${count(number)} of them on this page` : ""}.`;
$("tables").replaceChildren(...data.tables.map(drawTable));
document.documentElement.style.setProperty("--ratio", data.ratio);
drawSpaces();
$("field").replaceChildren(
  ...data.fields.map((field, k) => make("option", { value: k, selected: k === data.field }, field.name)),
);
$("field").addEventListener("change", () => {
  alone = null;
  paint();
});
$("zoom-in").addEventListener("click", () => map.zoom(1.6));
$("zoom-out").addEventListener("click", () => map.zoom(1 / 1.6));
$("zoom-all").addEventListener("click", () => map.whole());
$("notes").replaceChildren(
  ...[
    `${data.model}: ${data.runs.model}. Baseline: ${data.runs.baseline}.`,
    `Scores are cosines. Neighbours on this page are exact${number < data.total ? `, among the ${count(number)} items that are here: those asked for, cold and popular ones, and the most shown` : ", among all items"}; an item that training never showed has no place among IDs. The tables know all items.`,
    `Frozen content is ${data.frozen.join(", ")}: tokens standardised as models read them, averaged over an item, scaled to unit length per feature set.`,
    "The maps are t-SNE by cosine distance: what is near is alike, what is far apart says little. Each is turned to lie like the first.",
  ].map((text) => make("p", {}, text)),
);
paint();
show(fromAddress());
