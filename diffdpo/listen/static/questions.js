// What is asked about the songs of a trial, and the answer as the server takes it.

import { text } from "./texts.js";

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A row of buttons of which one is chosen; a second click on it takes the choice back.
function choiceRow(title, options, className, onChoose) {
  const state = { value: null };
  const buttons = options.map(([value, label]) => {
    const button = make("button", { type: "button", textContent: label });
    button.dataset.value = value;
    button.addEventListener("click", () => choose(state.value === value ? null : value));
    return button;
  });
  function choose(value) {
    state.value = value;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === String(value)));
    onChoose?.(value);
  }
  choose(null);
  const options_ = make("div", { className: "options" }, ...buttons);
  const element = make("fieldset", { className }, make("legend", { textContent: title }), options_);
  return { element, state, choose };
}

const choices = () => ["a", "b", "tie", "both_bad"].map((value) => [value, text(`answer_${value}`)]);
const shortChoices = () => [["a", "A"], ["b", "B"], ["tie", text("short_tie")], ["both_bad", text("short_both_bad")]];
const starOptions = () => [1, 2, 3, 4, 5].map((number) => [number, `${number} ★`]);

function labelStars(row) {
  row.element.classList.add("stars");
  for (const button of row.element.querySelectorAll("button"))
    button.setAttribute("aria-label", text("stars", { number: button.dataset.value }));
  return row;
}

function pairQuestions(trial, place) {
  const strength = choiceRow(text("howMuch"), [1, 2, 3].map((k) => [k, text(`strength${k}`)]), "small");
  strength.element.id = "strength";
  const main = choiceRow(text("whichBetter"), choices(), "wide", (value) => {
    strength.element.hidden = !(trial.strength && (value === "a" || value === "b"));
  });
  main.element.id = "answer";
  const axes = trial.axes.map((axis) => [axis, choiceRow(axis, shortChoices(), "small axis")]);
  place.append(main.element, strength.element, ...axes.map(([, row]) => row.element));
  return {
    keys: {
      ...Object.fromEntries(["a", "b", "tie", "both_bad"].map((value, k) => [String(k + 1), () => main.choose(value)])),
      ...Object.fromEntries(["q", "w", "e"].map((key, k) => [key, () => { if (!strength.element.hidden) strength.choose(k + 1); }])),
    },
    help: [["1 2 3 4", "keyAnswer"], ...(trial.strength ? [["Q W E", "keyStrength"]] : [])],
    read() {
      if (!main.state.value) return null;
      const rows = axes.filter(([, row]) => row.state.value).map(([axis, row]) => [axis, row.state.value]);
      const decided = !strength.element.hidden;
      return { answer: main.state.value, strength: (decided && strength.state.value) || 0, axes: Object.fromEntries(rows) };
    },
  };
}

function ratingQuestions(trial, place) {
  const thumb = choiceRow(text("thumbQuestion"), [[1, text("thumbUp")], [-1, text("thumbDown")]], "wide");
  const stars = labelStars(choiceRow(text("starsQuestion"), starOptions(), "wide five"));
  const axes = trial.axes.map((axis) => [axis, labelStars(choiceRow(axis, starOptions(), "small axis"))]);
  place.append(thumb.element, stars.element, ...axes.map(([, row]) => row.element));
  return {
    keys: {
      ...Object.fromEntries([1, 2, 3, 4, 5].map((number) => [String(number), () => stars.choose(number)])),
      "+": () => thumb.choose(1),
      "-": () => thumb.choose(-1),
    },
    help: [["1 … 5", "keyStars"], ["+ -", "keyThumb"]],
    read() {
      if (!thumb.state.value && !stars.state.value) return null;
      const rows = axes.filter(([, row]) => row.state.value).map(([axis, row]) => [axis, row.state.value]);
      return { thumb: thumb.state.value ?? 0, stars: stars.state.value ?? 0, axes: Object.fromEntries(rows) };
    },
  };
}

function mushraQuestions(trial, place, player) {
  const touched = new Set();
  const rows = trial.sounds.slice(1).map((_, k) => {
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, value: 50 });
    slider.setAttribute("aria-label", text("sound", { name: k + 1 }));
    const output = make("output", { textContent: "–" });
    const note = () => {
      touched.add(k);
      output.textContent = slider.value;
    };
    slider.addEventListener("input", note);
    slider.addEventListener("focus", () => player.select(k + 1));
    const element = make("div", { className: "rank" }, make("b", { textContent: k + 1 }), slider, output);
    return { slider, output, note, element };
  });
  const scale = make("div", { className: "scale" }, ...["bad", "poor", "fair", "good", "excellent"].map((key) =>
    make("span", { textContent: text(key) })));
  place.append(make("fieldset", {}, make("legend", { textContent: text("valuesQuestion") }), scale, ...rows.map((row) => row.element)));
  const move = (step) => () => {
    const row = rows[player.current - 1];
    if (!row) return;
    row.slider.value = Number(row.slider.value) + step;
    row.note();
  };
  return {
    keys: { ArrowUp: move(2), ArrowDown: move(-2), PageUp: move(10), PageDown: move(-10) },
    help: [["↑ ↓", "keyValue"]],
    onSelect: (position) => rows.forEach((row, k) => row.element.classList.toggle("on", k === position - 1)),
    read: () => (touched.size < rows.length ? null : { values: rows.map((row) => Number(row.slider.value)) }),
  };
}

export function buildQuestions(trial, place, player) {
  place.replaceChildren();
  return { pair: pairQuestions, rating: ratingQuestions, mushra: mushraQuestions }[trial.mode](trial, place, player);
}

export { make };
