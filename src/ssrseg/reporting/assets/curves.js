/** Values of all curves at the step under the pointer, or that the arrow keys have reached. */
function plot(svg) {
  const pairs = (text) => text.split(" ").filter(Boolean).map((pair) => pair.split(",").map(Number));
  const curves = all(".curve", svg).map((element) => ({
    element,
    places: pairs(element.querySelector("polyline").getAttribute("points")),
    values: pairs(element.dataset.values),
  }));
  const box = make("div", { className: "readout", hidden: true, ariaLive: "polite" });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  line.setAttribute("class", "cursor");
  svg.after(box);
  svg.tabIndex = 0;
  let at = null;

  const shown = () => curves.filter(({ element }) => !element.classList.contains("off"));
  const stops = () => [...new Set(shown().flatMap(({ places }) => places.map(([x]) => x)))].sort((a, b) => a - b);
  function read(x, y = null) {
    at = x;
    const rows = [];
    let step = null;
    for (const { element, places, values } of shown()) {
      const i = places.findIndex(([place]) => place === x);
      if (i < 0) continue;
      step = values[i][0];
      rows.push({ element, value: values[i][1], far: y === null ? 0 : Math.abs(places[i][1] - y) });
    }
    rows.sort((a, b) => a.far - b.far || b.value - a.value);
    const more = rows.length - 8;
    const lines = rows.slice(0, 8).sort((a, b) => b.value - a.value).map(({ element, value }) => make("div", {},
      make("span", { className: `swatch ${element.classList[1]}` }),
      make("span", { textContent: element.dataset.name }), make("b", { textContent: value })));
    box.replaceChildren(make("div", { textContent: `step ${step}` }), ...lines);
    if (more > 0) box.append(make("div", { textContent: `and ${more} more` }));
    box.style.inset = x < width / 2 ? "1.8rem 0 auto auto" : "1.8rem auto auto 12%";
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 8, y2: height - 28 })) line.setAttribute(name, value);
    svg.append(line);
    box.hidden = false;
  }
  function clear() { box.hidden = true; line.remove(); at = null; }
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width * width, (event.clientY - area.top) / area.height * height];
    const places = stops();
    if (places.length) read(places.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a)), y);
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const places = stops();
    const now = places.indexOf(at);
    const next = { ArrowLeft: now < 0 ? places.length - 1 : now - 1, ArrowRight: now + 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") clear();
    if (next === undefined || !places.length) return;
    event.preventDefault();
    read(places[Math.min(Math.max(next, 0), places.length - 1)]);
  });
}

/** Names that switch their curves off and on. */
function switches(legend) {
  const off = new Set();
  const curves = all(".curve", legend.parentElement);
  for (const name of all("[data-key]", legend)) {
    const key = name.dataset.key;
    const button = make("button", { type: "button", ariaPressed: "true" }, ...name.childNodes);
    button.addEventListener("click", () => {
      off[off.has(key) ? "delete" : "add"](key);
      button.ariaPressed = String(!off.has(key));
      curves.forEach((curve) => curve.classList.toggle("off", curve.dataset.keys.split(" ").some((each) => off.has(each))));
    });
    name.replaceWith(button);
  }
}
