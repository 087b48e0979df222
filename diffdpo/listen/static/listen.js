// The way of a listener: consent, background, volume, headphones, trials, breaks, the end; and what is stored of them.

import { call } from "./api.js";
import { pinkNoise } from "./player.js";
import { make } from "./questions.js";
import { languageNames, setLanguage, text } from "./texts.js";
import { onKey, player, showTrial } from "./trial.js";

const $ = (id) => document.getElementById(id);
const sections = [...document.querySelectorAll("main > section")];
let state = {};
let language = "en";
let section = "";
let noise = null;
let timer = 0;

function show(name) {
  section = name;
  for (const element of sections) element.hidden = element.id !== name;
  $("my-data").hidden = ["consent", "data", "deleted", "failure", ""].includes(name);
  $("languages").hidden = name !== "consent";
  if (name !== "trial") {
    player.pause();
    if (!["data", "feedback", "break"].includes(name)) $("count").textContent = "";
  }
  stopNoise();
  window.scrollTo(0, 0);
  const title = $(name).querySelector("h2");
  title.tabIndex = -1;
  if (name !== "trial") title.focus({ preventScroll: true });
  else document.activeElement.blur();
}

function fail(error) {
  $("failure-text").textContent = error.status ? error.message : text("offline");
  show("failure");
}

// Every action of the page may fail: then it says so, and offers to begin where the server is.
const guarded = (action) => async (...values) => {
  try {
    await action(...values);
  } catch (error) {
    if (error.status === 401) await begin();
    else fail(error);
  }
};

async function begin() {
  state = await call("state");
  const codes = Object.keys(state.consents);
  const own = (navigator.languages ?? []).map((name) => name.slice(0, 2)).find((code) => codes.includes(code));
  chooseLanguage(state.language && codes.includes(state.language) ? state.language : own ?? codes[0]);
  await enter(state.stage);
}

function chooseLanguage(code) {
  language = code;
  setLanguage(code);
  $("languages").replaceChildren(...Object.keys(state.consents).map((name) => {
    const button = make("button", { type: "button", textContent: languageNames[name] ?? name, lang: name });
    button.setAttribute("aria-pressed", String(name === code));
    button.addEventListener("click", () => chooseLanguage(name));
    return button;
  }));
  const paragraphs = state.consents[code].text.split(/\n\s*\n/);
  $("consent-text").replaceChildren(...paragraphs.map((paragraph) => make("p", { textContent: paragraph })));
}

async function enter(stage) {
  if (stage === "trials") await nextTrial();
  else {
    if (stage === "headphones") startHeadphones();
    show(stage);
  }
}

const finishStage = guarded(async (stage, body) => {
  const reply = await call(`stage/${stage}`, body);
  await enter(reply.stage);
});

$("agree").addEventListener("click", guarded(async () => {
  const { version } = state.consents[language];
  state = await call("consent", { language, version, agree: true });
  await enter(state.stage);
}));

$("background-next").addEventListener("click", () =>
  finishStage("background", { language: $("own-language").value.trim(), background: $("own-music").value }));

function stopNoise() {
  noise?.stop();
  noise = null;
  $("volume-play").setAttribute("aria-pressed", "false");
}

$("volume-play").addEventListener("click", () => {
  if (noise) return stopNoise();
  const context = player.wake();
  noise = new AudioBufferSourceNode(context, { buffer: pinkNoise(context), loop: true });
  noise.connect(context.destination);
  noise.start();
  $("volume-play").setAttribute("aria-pressed", "true");
});

$("volume-next").addEventListener("click", () => finishStage("volume", {}));

// The headphone check

let answers = [];
let sounding = null;

function startHeadphones() {
  answers = [];
  showItem();
}

function showItem() {
  $("headphones-count").textContent = text("item", { number: answers.length + 1, of: state.headphones });
  for (const button of $("headphones-choices").querySelectorAll("[data-place]")) button.disabled = true;
}

const playItem = guarded(async () => {
  const context = player.wake();
  const answer = await fetch(`audio/headphones/${answers.length}`);
  if (!answer.ok) throw new Error(String(answer.status));
  const buffer = await context.decodeAudioData(await answer.arrayBuffer());
  sounding?.stop();
  sounding = new AudioBufferSourceNode(context, { buffer });
  sounding.connect(context.destination);
  sounding.start();
  for (const button of $("headphones-choices").querySelectorAll("[data-place]")) button.disabled = false;
});

async function answerItem(place) {
  sounding?.stop();
  answers.push(place);
  if (answers.length < state.headphones) showItem();
  else await finishStage("headphones", { answers });
}

$("headphones-play").addEventListener("click", playItem);
for (const button of $("headphones-choices").querySelectorAll("[data-place]"))
  button.addEventListener("click", () => answerItem(Number(button.dataset.place)));
$("headphones-skip").addEventListener("click", () => finishStage("headphones", { skip: true }));

// Trials, breaks, the end

const nextTrial = guarded(async () => follow(await call("trial", {})));

async function follow(step) {
  if (step.state === "done") return show("done");
  if (step.state === "break") return startBreak(step.seconds);
  $("count").textContent = text(step.training ? "practiceItem" : "item", { number: step.number, of: step.of });
  $("progress").firstElementChild.style.width = step.training ? 0 : `${(100 * (step.number - 1)) / step.of}%`;
  show("trial");
  await showTrial(step, guarded(async (reply, error) => {
    if (error) throw error;
    if (reply.feedback) showFeedback(step, reply.feedback);
    else await nextTrial();
  }));
}

function showFeedback(step, feedback) {
  const isPair = step.mode === "pair";
  $("feedback-title").textContent = text(!isPair ? "thanks" : feedback.right ? "right" : "wrong");
  let explanation = text("practiceOnly");
  if (isPair) explanation = `${text(`answerWas_${feedback.answer}`)} ${explanation}`;
  if (step.mode === "mushra") {
    const places = (start) => feedback.roles.map((role, k) => (role.startsWith(start) ? k : 0)).filter(Boolean).join(", ");
    explanation = `${text("hiddenWas", { name: places("reference"), anchors: places("anchor") })} ${explanation}`;
  }
  $("feedback-text").textContent = explanation;
  show("feedback");
}

$("feedback-next").addEventListener("click", nextTrial);

function startBreak(seconds) {
  const end = performance.now() + 1000 * seconds;
  show("break");
  clearInterval(timer);
  const tick = () => {
    const rest = Math.max(0, Math.ceil((end - performance.now()) / 1000));
    $("break-time").textContent = `${Math.floor(rest / 60)}:${String(rest % 60).padStart(2, "0")}`;
    $("break-end").disabled = rest > 0;
    if (!rest) clearInterval(timer);
  };
  timer = setInterval(tick, 250);
  tick();
}

$("break-end").addEventListener("click", guarded(async () => follow(await call("break", {}))));

// What is stored of the listener

$("my-data").addEventListener("click", () => {
  $("delete-confirm").hidden = true;
  show("data");
});
$("data-close").addEventListener("click", guarded(begin));
$("delete").addEventListener("click", () => {
  $("delete-confirm").hidden = false;
  $("delete-confirm").focus();
});
$("delete-confirm").addEventListener("click", guarded(async () => {
  await call("delete", { confirm: true });
  show("deleted");
}));
$("again").addEventListener("click", guarded(begin));

// Keys outside trials: space plays, digits choose.
addEventListener("keydown", (event) => {
  if (section === "trial") return onKey(event);
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const press = (button) => {
    event.preventDefault();
    if (!button.disabled) button.click();
  };
  if (section === "headphones" && event.key === " ") press($("headphones-play"));
  else if (section === "headphones" && ["1", "2", "3"].includes(event.key))
    press($("headphones-choices").querySelector(`[data-place="${event.key - 1}"]`));
  else if (section === "volume" && event.key === " ") press($("volume-play"));
  else if (event.key === "Enter" && !event.target.matches("button, a, summary")) {
    const button = $(section)?.querySelector(".primary:not([hidden])");
    if (button) press(button);
  }
});

guarded(begin)();
