"use strict";
/* Clicking a head sorts the table by that column: up, down, and as it was. What is no number comes last. */
const words = new Intl.Collator("en", { numeric: true });

function key(row, at, numeric) {
  const text = (row.cells[at]?.textContent ?? "").trim();
  if (!numeric) return text;
  return parseFloat(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/.exec(text.replaceAll("−", "-").replaceAll(",", "")) ?? "nan");
}

for (const table of document.querySelectorAll(".scroll > table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  if (rows.length < 3) continue;
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const of = rows.map(row => row.cells[at]).filter(cell => cell?.textContent.trim());
    const numeric = table.classList.contains("numbers") && at > 0 && !of.some(cell => cell.matches(".left, .prose"));
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort ?? "none"];
      heads.forEach(each => each.removeAttribute("aria-sort"));
      if (order === "none") return body.append(...rows);
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = rows.map(row => [key(row, at, numeric), row]);
      keyed.sort(([a], [b]) => (numeric ? isNaN(a) - isNaN(b) || sign * (a - b) || 0 : sign * words.compare(a, b)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
