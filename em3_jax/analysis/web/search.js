// The search: by title or id, in any place of the title, the better match first, then the more clicked.
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
