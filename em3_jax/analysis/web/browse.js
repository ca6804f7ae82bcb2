// An item, its neighbours, the map around it, and the address that names them.
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
const map = makeMap({ canvas: $("map"), side: data.side, describe, pick: (item) => go({ item }) });
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
