"use strict";
// What a static page cannot do: read curves and matrices out, switch between parts, compare pictures.
addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const percent = (value) => (100 * value).toFixed(1);
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(100 * value).toFixed(1);
let groups = 0;

/** Few short names become radio buttons, others a list; both work by keyboard as they are. */
const choice = (label, names, chosen, changed) => (fits(names) ? radios : list)(label, names, chosen, changed);
const fits = (names) => names.length <= 4 && names.join("").length <= 60;

function list(label, names, chosen, changed) {
  const select = make("select", {}, ...names.map((name, i) => make("option", { value: i, textContent: name })));
  select.value = chosen;
  select.addEventListener("change", () => changed(Number(select.value)));
  return make("label", { className: "choice" }, make("span", { textContent: label }), select);
}

function radios(label, names, chosen, changed) {
  groups += 1;
  const options = make("div", { className: "options" }, ...names.map((name, i) => {
    const input = make("input", { type: "radio", name: `choice-${groups}`, value: i, checked: i === chosen });
    input.addEventListener("change", () => changed(i));
    return make("label", {}, input, name);
  }));
  return make("fieldset", { className: "choice" }, make("legend", { textContent: label }), options);
}

/** One part at a time. */
function tabs(box) {
  const parts = all(":scope > [data-tab]", box);
  if (parts.length < 2) return;
  const show = (chosen) => parts.forEach((part, i) => { part.hidden = i !== chosen; });
  const names = parts.map((part) => part.dataset.tab);
  box.prepend(make("div", { className: "controls" }, choice(box.dataset.label, names, 0, show)));
  all(":scope > [data-tab] > h3:first-child", box).forEach((title) => { title.hidden = true; });
  show(0);
}

/** A slider over time. */
function frames(box) {
  const parts = all(":scope > [data-frame]", box);
  if (parts.length < 2) return;
  const name = make("output");
  const slider = make("input", { type: "range", min: 0, max: parts.length - 1, value: parts.length - 1 });
  slider.setAttribute("aria-label", box.dataset.label);
  const show = () => {
    parts.forEach((part, i) => { part.hidden = i !== Number(slider.value); });
    const text = `${box.dataset.label} ${parts[slider.value].dataset.frame}`;
    name.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.addEventListener("input", show);
  all(":scope > [data-frame] > h3", box).forEach((title) => { title.hidden = true; });
  box.prepend(make("div", { className: "scrub" }, slider, name));
  show();
}
