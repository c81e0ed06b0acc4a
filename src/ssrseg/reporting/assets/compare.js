/** Class names by pixel of a label map, from the colours of the legend; classes of one colour cannot be told apart. */
async function classMap(source) {
  const names = new Map();
  for (const { dataset, textContent } of all(".legend [data-colour]")) {
    names.set(dataset.colour, names.has(dataset.colour) ? `${names.get(dataset.colour)} or ${textContent}` : textContent);
  }
  const image = make("img", { src: source });
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return (across, down) => {
    const at = [Math.floor(across * canvas.width), Math.floor(down * canvas.height)];
    const colour = [...context.getImageData(...at, 1, 1).data.slice(0, 3)].map((part) => part.toString(16).padStart(2, "0"));
    return names.get(`#${colour.join("")}`) ?? "no label";
  };
}

/** Two predictions of one image under a slider; images in the order of what B gains over A. */
function compare(box) {
  const names = ["ground truth", ...all(":scope > data", box).map((each) => each.value)];
  const images = all(".example", box).map((article) => {
    const sources = (layer) => all(`[data-layer=${layer}] img`, article).map((image) => image.src);
    const scores = all("[data-layer=labels]", article).map(({ dataset }) => (dataset.miou === "" ? null : Number(dataset.miou)));
    return { ...article.dataset, image: sources("image")[0], labels: [...sources("truth"), ...sources("labels")],
      errors: ["", ...sources("errors")], miou: [null, ...scores] };
  });
  if (!images.length) return;
  let [left, right, order, current] = [names.length > 2 ? 1 : 0, names.length - 1, images, images[0]];
  const score = (image) => (left === 0 ? image.miou[right] : image.miou[right] - image.miou[left]);
  const measured = (image) => image.miou[right] !== null && (left === 0 || image.miou[left] !== null);

  const picture = (className, alt = "") => make("img", { className, alt });
  const [base, one, two] = [picture("base"), picture("side left ids"), picture("side right ids")];
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, step: 1, ariaLabel: "How far A reaches" });
  const stage = make("div", { className: "stage" }, base, one, two, make("div", { className: "handle" }), slider);
  slider.addEventListener("input", () => stage.style.setProperty("--at", `${slider.value}%`));
  const ends = make("div", { className: "ends" });
  const view = make("div", { className: "view" }, stage, ends);
  const told = make("p", { className: "told", ariaLive: "polite" });
  const whole = make("p", { className: "soft whole" });
  const here = make("p", { className: "soft here" });
  let maps = [];
  stage.addEventListener("pointermove", (event) => {
    const area = stage.getBoundingClientRect();
    const at = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    if (at.some((share) => share < 0 || share >= 1)) return;
    here.textContent = maps.map(({ label, name }) => `${label}: ${name(...at)}`).join(" · ");
  });
  const strips = make("div", { className: "strips" });
  const layers = make("div", { className: "layers" });
  const mode = (i) => { stage.dataset.show = ["labels", "blend", "errors"][i]; draw(); };
  const walk = (text, by) => {
    const button = make("button", { type: "button", className: "plain", textContent: text });
    button.addEventListener("click", () => { current = order[(order.indexOf(current) + by + order.length) % order.length]; draw(); });
    return button;
  };

  function text(image) {
    if (!measured(image)) return "nothing labelled";
    if (left === 0) return `mIoU ${percent(image.miou[right])}`;
    return `mIoU ${percent(image.miou[left])} → ${percent(image.miou[right])} (${signed(score(image))})`;
  }
  async function read() {
    const [before, drawn] = [maps, current];
    const sources = { truth: 0, ...(left === 0 ? {} : { A: left }), B: right };
    const found = await Promise.all(Object.entries(sources).map(async ([label, run]) => ({ label, name: await classMap(drawn.labels[run]) })));
    if (maps === before) maps = found; // else something else is shown by now
  }
  function draw() {
    maps = [];
    here.textContent = "";
    read();
    const errors = stage.dataset.show === "errors";
    stage.style.aspectRatio = `${current.width} / ${current.height}`;
    view.style.maxWidth = layers.style.maxWidth = `calc(60vh * ${current.width / current.height})`;
    base.src = current.image;
    base.alt = current.name;
    for (const [side, run] of [[one, left], [two, right]]) {
      side.src = errors ? current.errors[run] || "data:," : current.labels[run];
      side.hidden = errors && !current.errors[run];
      side.alt = `${errors ? "errors" : "labels"}: ${names[run]}`;
    }
    ends.replaceChildren(make("span", { textContent: `◧ A: ${names[left]}` }), make("span", { textContent: `B: ${names[right]} ◨` }));
    told.replaceChildren(make("b", { textContent: `${order.indexOf(current) + 1} of ${order.length}` }), ` · ${current.name} · ${text(current)}`);
    const panel = (label, source, kind = "ids") => source ? [make("figure", {}, make("img", { src: source, alt: label, className: kind }), make("figcaption", { textContent: label }))] : [];
    layers.replaceChildren(...panel("image", current.image, ""), ...panel("ground truth", current.labels[0]),
      ...panel(`errors of A: ${names[left]}`, current.errors[left]), ...panel(`errors of B: ${names[right]}`, current.errors[right]));
    all("button", strips).forEach((button) => { button.ariaCurrent = String(button.dataset.name === current.name); });
  }
  function strip(title, chosen) {
    const buttons = chosen.map((image) => {
      const value = left === 0 ? percent(score(image)) : signed(score(image));
      const button = make("button", { type: "button", title: image.name, ariaLabel: `${image.name}: ${text(image)}` }, make("img", { src: image.image, alt: "" }), value);
      button.dataset.name = image.name;
      button.addEventListener("click", () => { current = image; draw(); });
      return button;
    });
    return make("div", {}, make("h3", { textContent: title }), chosen.length ? make("div", { className: "strip" }, ...buttons) : make("p", { className: "soft", textContent: "none" }));
  }
  function sort() {
    const known = images.filter(measured).sort((a, b) => score(b) - score(a));
    order = [...known, ...images.filter((image) => !measured(image))];
    current = order[0];
    const half = Math.min(8, Math.ceil(known.length / 2));
    if (left === 0) {
      whole.textContent = "";
      strips.replaceChildren(strip("Best predicted, mIoU", known.slice(0, half)), strip("Worst predicted, mIoU", known.slice(half).slice(-half).reverse()));
    } else {
      const [better, worse] = [known.filter((image) => score(image) > 0), known.filter((image) => score(image) < 0)];
      const mean = known.reduce((sum, image) => sum + score(image), 0) / known.length;
      whole.textContent = `B is better on ${better.length} of these ${known.length} images and worse on ${worse.length}; mean difference per image ${signed(mean)} points of mIoU.`;
      strips.replaceChildren(strip("Largest gains of B, points of mIoU", better.slice(0, 8)), strip("Largest losses of B, points of mIoU", worse.slice(-8).reverse()));
    }
    draw();
  }

  const controls = make("div", { className: "controls" });
  if (names.length > 2) {
    const pick = fits(names) ? radios : list;
    controls.append(pick("A, left", names, left, (i) => { left = i; sort(); }),
      pick("B, right", names.slice(1), right - 1, (i) => { right = i + 1; sort(); }));
  }
  controls.append(choice("Show", ["labels", "over the image", "errors"], 0, mode));
  const steps = make("div", { className: "controls" }, walk("‹ previous", -1), walk("next ›", 1), told);
  box.replaceChildren(controls, view, here, steps, layers, whole, strips);
  stage.dataset.show = "labels";
  sort();
}
