(() => {
  const tables = [...document.querySelectorAll("table.data")], languages = new Set();
  const chosen = document.querySelector("#language");
  const made = (tag, properties) => Object.assign(document.createElement(tag), properties);

  // rows: a body is a row and its remark
  const seen = table => [...table.tBodies].filter(row => !row.hidden);
  const languagesOf = row => row.dataset.languages && JSON.parse(row.dataset.languages);
  const show = () => tables.forEach(table => {
    const box = table.filterBox, words = box ? box.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
    for (const row of table.tBodies) {
      const text = row.textContent.toLowerCase(), own = languagesOf(row);
      row.hidden = !words.every(each => text.includes(each)) || Boolean(chosen.value && own && !own.includes(chosen.value));
    }
    if (box) box.nextSibling.textContent = `${seen(table).length} of ${table.tBodies.length}`;
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

  // copies: the visible rows in their order, as CSV with the numbers in full and as LaTeX (booktabs) as shown
  const LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", "●": "$\\bullet$", "◕": "$3/4$", "◑": "$1/2$", "◔": "$1/4$", "○": "$\\circ$"};
  const latex = text => text.trim().replace(/\s+/g, " ").replace(/[\\{}&%$#_~^<>|●◕◑◔○]/g, each => LATEX[each] || `\\${each}`);
  const csv = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const isNumber = cell => cell.classList.contains("number");
  const remarkOf = row => row.rows[1] ? row.rows[1].textContent.trim() : "";
  const asCsv = table => {
    const heads = [...table.tHead.rows[0].cells], remark = table.dataset.remark;
    const value = cell => isNumber(cell) ? cell.dataset.value || "" : cell.textContent;
    const rows = seen(table).map(row => [...[...row.rows[0].cells].map(value), ...(remark ? [remarkOf(row)] : [])]);
    return [[...heads.map(head => head.dataset.name), ...(remark ? [remark] : [])], ...rows]
      .map(row => row.map(csv).join(",") + "\n").join("");
  };
  const asLatex = table => {
    const heads = [...table.tHead.rows[0].cells], remark = table.dataset.remark, caption = table.dataset.caption.replace(/\s+/g, " ");
    const value = cell => isNumber(cell) ? latex(cell.textContent).replaceAll("-", "$-$") : latex(cell.textContent);
    const cellsOf = (cells, last) => [...cells, ...(remark ? [latex(last)] : [])].join(" & ");
    // behind \\ and a rule, LaTeX reads a first "[" or "*" as an option
    const line = (cells, last) => `${cellsOf(cells, last).replace(/^[[*]/, "{$&}")} \\\\`;
    const columns = heads.map(head => isNumber(head) ? "r" : "l").join("") + (remark ? "p{0.4\\linewidth}" : "");
    const body = seen(table).map(row => line([...row.rows[0].cells].map(value), remarkOf(row)));
    return [...(caption ? [`% ${caption}`] : []), `\\begin{tabular}{${columns}}`, "\\toprule",
      line(heads.map(head => latex(head.textContent)), remark || ""), "\\midrule", ...body, "\\bottomrule", "\\end{tabular}", ""].join("\n");
  };
  const copy = async (button, name, text) => {
    const box = made("textarea", {value: text, readOnly: true});
    let done = true;
    try { await navigator.clipboard.writeText(text); }
    catch {  // none for a page from disk in some browsers, or not allowed: by hand
      button.after(box);
      box.select();
      done = document.execCommand("copy");
      if (done) { box.remove(); button.focus(); }
      else box.addEventListener("blur", () => box.remove());
    }
    button.textContent = done ? "copied" : "press Ctrl+C";
    setTimeout(() => { button.textContent = name; }, 2000);
  };

  tables.forEach(table => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = made("button", {type: "button"});
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
    const tools = made("div", {className: "tools"});
    if (table.tBodies.length >= 8) {
      table.filterBox = made("input", {type: "search", placeholder: "rows with these words", ariaLabel: "Filter rows"});
      table.filterBox.addEventListener("input", show);
      tools.append(table.filterBox, made("span", {className: "count", ariaLive: "polite"}));
    }
    for (const [name, written] of [["copy as CSV", asCsv], ["copy as LaTeX", asLatex]]) {
      const button = made("button", {type: "button", className: "copy", textContent: name});
      button.addEventListener("click", () => copy(button, name, written(table)));
      tools.append(button);
    }
    table.parentElement.before(tools);
    for (const row of table.tBodies) (languagesOf(row) || []).forEach(each => languages.add(each));
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
  show();
  follow();

  // figures: drawn at their width once they are seen, in the colours of the page
  document.querySelectorAll("details.page").forEach(each => each.addEventListener("toggle",
    () => each.querySelectorAll(".plotly-graph-div").forEach(figure => Plotly.Plots.resize(figure))));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => document.querySelectorAll(".plotly-graph-div").forEach(each => {
    const colour = dark.matches ? "#d5d8dc" : "#333333";
    Plotly.update(each, {"error_y.color": colour}, {"font.color": colour});
  });
  dark.addEventListener("change", recolour);
  if (dark.matches) recolour();
})();
