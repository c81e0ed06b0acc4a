/** A matrix tells the figures of the cell under the pointer or the focus. */
function matrix(table) {
  const rows = all("tbody tr", table).map((row) => all("td[data-pixels]", row));
  const columns = all("thead th", table).map((cell) => cell.textContent);
  const told = table.closest("[data-tab]").querySelector(".told");
  const tell = (cell) => {
    const truth = cell.parentElement.querySelector("th").textContent;
    const share = 100 * Number(cell.style.getPropertyValue("--v"));
    const pixels = Number(cell.dataset.pixels).toLocaleString("en");
    told.replaceChildren("Of the pixels of ", make("b", { textContent: truth }), `, ${share.toFixed(1)} % are called `,
      make("b", { textContent: columns[cell.cellIndex - 1] }), ` (${pixels} pixels).`);
  };
  const first = rows.find((row) => row.length);
  if (first) first[0].tabIndex = 0;
  table.addEventListener("pointerover", (event) => { if (event.target.closest("td[data-pixels]")) tell(event.target.closest("td[data-pixels]")); });
  table.addEventListener("focusin", (event) => { if (event.target.matches("td[data-pixels]")) tell(event.target); });
  table.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const full = rows.filter((row) => row.length);
    const row = full.findIndex((cells) => cells.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    const next = full[row + step[0]]?.[full[row].indexOf(event.target) + step[1]];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
