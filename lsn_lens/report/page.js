(() => {
  const tables = [...document.querySelectorAll("table.data")], languages = new Set();
  const chosen = document.querySelector("#language");

  // rows: a body is a row and its remark
  const show = () => tables.forEach(table => {
    const box = table.filterBox, words = box ? box.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    for (const row of table.tBodies) {
      const text = row.textContent.toLowerCase(), own = row.dataset.language;
      row.hidden = !words.every(each => text.includes(each)) || Boolean(chosen.value && own && own !== chosen.value);
    }
  });
  const sort = (table, head, column) => {
    const number = head.classList.contains("number"), now = head.getAttribute("aria-sort");
    const up = number ? now === "descending" : now !== "ascending", sign = up ? 1 : -1;
    for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => number ? row.rows[0].cells[column].dataset.value : row.rows[0].cells[column].textContent;
    [...table.tBodies].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      if (!a || !b) return !a - !b;  // missing values last, in both orders
      return sign * (number ? a - b : a.localeCompare(b, undefined, {numeric: true}));
    }).forEach(row => table.append(row));
  };
  tables.forEach(table => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
    if (table.tBodies.length >= 8) {
      table.filterBox = document.createElement("input");
      Object.assign(table.filterBox, {type: "search", placeholder: "rows with these words", ariaLabel: "Filter rows"});
      table.filterBox.addEventListener("input", show);
      table.parentElement.before(table.filterBox);
    }
    for (const row of table.tBodies) if (row.dataset.language) languages.add(row.dataset.language);
  });

  // one language: chosen, or named in the address
  languages.forEach(each => chosen.add(new Option(each)));
  document.querySelector("#follow").hidden = languages.size < 2;
  const choose = () => { show(); document.querySelector("#others").hidden = !chosen.value; };
  chosen.addEventListener("change", () => {
    history.replaceState(null, "", chosen.value ? `#language=${encodeURIComponent(chosen.value)}` : "#");
    choose();
  });
  const follow = () => {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (hash.startsWith("language=")) { chosen.value = hash.slice(9); choose(); return; }
    const part = hash && document.getElementById(hash), folded = part && part.querySelector(":scope > details.page");
    if (folded) folded.open = true;
  };
  addEventListener("hashchange", follow);
  follow();

  // figures: drawn at their width once they are seen, in the colours of the page
  document.querySelectorAll("details.page").forEach(each => each.addEventListener("toggle",
    () => each.querySelectorAll(".plotly-graph-div").forEach(figure => Plotly.Plots.resize(figure))));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => document.querySelectorAll(".plotly-graph-div").forEach(
    each => Plotly.relayout(each, {"font.color": dark.matches ? "#d5d8dc" : "#333333"}));
  dark.addEventListener("change", recolour);
  if (dark.matches) recolour();
})();
