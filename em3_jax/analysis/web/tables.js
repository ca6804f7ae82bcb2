// Tables 8 and 9.
const ABOUT_TABLES = {
  8: [
    "Cold items: do neighbours by ID look and read alike?",
    "material similarity",
    (t) =>
      `For items with 1 to ${count(data.cold_most)} training showings: cosine with the ${t.neighbours} nearest by ID embedding, ` +
      `measured in: ${t.measured_name}${t.read_by_model ? `, which ${data.model} reads itself` : ""}.`,
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
      make("td", { class: `gain${gain && sure ? (mean < 0 ? " worse" : " better") : ""}` }, gain || ""),
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
