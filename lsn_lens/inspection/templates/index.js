const body = document.querySelector("#units tbody"), heads = [...document.querySelectorAll("#units th")];
const search = document.querySelector("#search"), language = document.querySelector("#language");
const show = () => {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase(), own = JSON.parse(row.dataset.languages);
    row.hidden = !(words.every(each => text.includes(each)) && (!language.value || own.includes(language.value)));
    shown += !row.hidden;
  }
  document.querySelector("#count").textContent = `${shown} of ${body.rows.length}`;
};
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  const number = head.classList.contains("number"), value = row => row.cells[column].dataset.value;
  heads.forEach(each => each.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  [...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (!number) return sign * a.localeCompare(b);
    if (!a || !b) return !a - !b;  // missing numbers last, in both orders
    return sign * (a - b);
  }).forEach(row => body.append(row));
}));
search.addEventListener("input", show);
language.addEventListener("change", show);
show();
