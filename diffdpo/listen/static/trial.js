// One trial: its sounds in step, what was heard of each, the loop, bad moments, and the answer.

import { inOrder } from "./api.js";
import { Player } from "./player.js";
import { buildQuestions, make } from "./questions.js";
import { text } from "./texts.js";

const $ = (id) => document.getElementById(id);
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

let trial = null;
let questions = null;
let heard = [];
let spans = [];
let openMark = null;
let wasPlaying = false;
let lastPosition = 0;
let busy = false;
let finish = () => {};

export const player = new Player(onPlayer);

function label(position) {
  if (trial.mode === "mushra") return position ? String(position) : text("referenceShort");
  return trial.mode === "pair" ? "AB"[position] : "♪";
}

export async function showTrial(next, onFinish) {
  [trial, finish, heard, busy] = [next, onFinish, next.heard, false];
  spans = trial.sounds.map(() => []);
  openMark = null;
  $("practice").hidden = !trial.training;
  $("prompt").textContent = trial.prompt || text("whichBetter");
  $("lyrics").hidden = !trial.lyrics;
  $("lyrics").open = false;
  $("lyrics").querySelector("p").textContent = trial.lyrics;
  for (const id of ["comment", "report-text"]) $(id).value = "";
  $("comment-box").open = false;
  $("report-box").hidden = true;
  $("message").textContent = "";
  $("mark").hidden = !trial.spans;
  $("sounds").replaceChildren(...trial.sounds.map((_, position) => soundButton(position)));
  $("sounds").classList.toggle("many", trial.sounds.length > 2);
  $("seek").max = trial.seconds;
  $("seek").setAttribute("aria-label", text("seek"));
  questions = buildQuestions(trial, $("questions"), player);
  showKeys();
  $("play").disabled = true;
  await player.load(trial.sounds);
  $("play").disabled = false;
  player.select(0);
  drawMarks();
  drawHeard();
}

function soundButton(position) {
  const button = make("button", { type: "button", className: "sound" },
    make("span", { textContent: label(position) }), make("small"), make("i", { className: "heard" }));
  button.setAttribute("aria-label", text("sound", { name: label(position) }));
  button.addEventListener("click", () => choose(position));
  return button;
}

function choose(position) {
  if (position === player.current && player.playing) return;
  closeMark();
  player.select(position);
  if (!player.playing) player.play();
  else report("play");
  questions.onSelect?.(position);
}

function onPlayer() {
  $("play").classList.toggle("playing", player.playing);
  $("play").setAttribute("aria-label", text(player.playing ? "pause" : "play"));
  [...$("sounds").children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === player.current)));
  $("loop-clear").hidden = !player.loop;
  if (player.playing !== wasPlaying) {
    wasPlaying = player.playing;
    if (trial) report(wasPlaying ? "play" : "pause");
  }
  draw();
}

// What is heard is counted by the server, from these reports.
async function report(event) {
  const id = trial.trial;
  try {
    const answer = await inOrder("playback", { trial: id, event, position: player.current });
    if (trial?.trial === id) heard = answer.heard;
    drawHeard();
  } catch {
    // The next report tells the same; an answer that comes too early is refused with a message.
  }
}

setInterval(() => { if (trial && player.playing) report("tick"); }, 1000);

function drawHeard() {
  if (!trial) return;
  [...$("sounds").children].forEach((button, k) => {
    const share = trial.min_heard_s ? Math.min(1, heard[k] / trial.min_heard_s) : 1;
    button.querySelector(".heard").style.width = `${100 * share}%`;
    button.classList.toggle("enough", share >= 1);
    button.querySelector("small").replaceChildren(...(share >= 1 ? ["✓", make("span", { textContent: ` ${text("heardAll")}` })] : []));
  });
}

function draw() {
  if (!trial) return;
  const { position, seconds } = player;
  const percent = (time) => `${(100 * time) / Math.max(seconds, 0.01)}%`;
  $("head").style.left = percent(position);
  $("time").textContent = `${clock(position)} / ${clock(seconds)}`;
  if (document.activeElement !== $("seek") || player.playing) $("seek").value = position;
  $("seek").setAttribute("aria-valuetext", clock(position));
  $("loop").hidden = !player.loop;
  if (player.loop) {
    $("loop").style.left = percent(player.loop[0]);
    $("loop").style.width = percent(player.loop[1] - player.loop[0]);
  }
  if (openMark !== null && position < lastPosition) closeMark(lastPosition);
  if (openMark !== null) drawMarks();
  lastPosition = position;
}

function frame() {
  if (player.playing) draw();
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);

function drawMarks() {
  const length = Math.max(player.seconds, 0.01);
  const rows = spans.flatMap((marks, k) => marks.map(([start, stop]) => [start, stop, k]));
  if (openMark !== null) rows.push([openMark, Math.max(openMark, player.position), player.current]);
  $("marks").replaceChildren(...rows.map(([start, stop, k]) => {
    const mark = make("i", { className: k === player.current ? "" : "off" });
    mark.style.left = `${(100 * start) / length}%`;
    mark.style.width = `${(100 * (stop - start)) / length}%`;
    return mark;
  }));
  $("mark").setAttribute("aria-pressed", String(openMark !== null));
  $("mark").textContent = text(openMark === null ? "mark" : "markEnd");
}

function closeMark(stop = player.position) {
  if (openMark !== null && stop - openMark >= 0.05) spans[player.current].push([openMark, Math.min(stop, trial.seconds)]);
  openMark = null;
  drawMarks();
}

function toggleMark() {
  if (!trial.spans) return;
  if (openMark !== null) closeMark();
  else {
    openMark = player.position;
    lastPosition = openMark;
    if (!player.playing) player.play();
    drawMarks();
  }
}

async function send(body) {
  if (busy) return;
  busy = true;
  const id = trial.trial;
  try {
    closeMark();
    player.pause();
    const reply = await inOrder("answer", { trial: id, comment: $("comment").value, ...body });
    trial = null;
    player.clear();
    finish(reply);
  } catch (error) {
    busy = false;
    if (error.status === 409 && error.body.needed) {
      heard = error.body.heard;
      drawHeard();
      $("message").textContent = text("listenFirst", { seconds: error.body.needed });
    } else if (error.status === 422) $("message").textContent = error.message;
    else finish(null, error);
  }
}

function submit() {
  const answer = questions.read();
  if (!answer) $("message").textContent = text("chooseFirst");
  else send({ ...answer, spans });
}

function openReport() {
  $("report-box").hidden = !$("report-box").hidden;
  if (!$("report-box").hidden) $("report-text").focus();
}

$("play").addEventListener("click", () => player.toggle());
$("seek").addEventListener("input", () => player.seek(Number($("seek").value)));
$("loop-start").addEventListener("click", () => player.setLoop(player.position, player.loop?.[1] ?? player.seconds));
$("loop-end").addEventListener("click", () => player.setLoop(player.loop?.[0] ?? 0, player.position));
$("loop-clear").addEventListener("click", () => player.clearLoop());
$("mark").addEventListener("click", toggleMark);
$("submit").addEventListener("click", submit);
$("skip").addEventListener("click", () => send({ skip: true }));
$("report").addEventListener("click", openReport);
$("report-send").addEventListener("click", () => send({ report: $("report-text").value }));

const common = {
  " ": () => player.toggle(),
  ArrowLeft: () => player.seek(player.position - 1),
  ArrowRight: () => player.seek(player.position + 1),
  "[": () => $("loop-start").click(), ",": () => $("loop-start").click(),
  "]": () => $("loop-end").click(), ".": () => $("loop-end").click(),
  l: () => player.clearLoop(),
  m: toggleMark,
  s: () => send({ skip: true }),
  r: openReport,
  Enter: submit,
};

function soundKeys() {
  if (trial.mode === "pair") return { a: () => choose(0), b: () => choose(1) };
  if (trial.mode === "mushra") return Object.fromEntries(trial.sounds.map((_, k) => [String(k), () => choose(k)]));
  return {};
}

function showKeys() {
  const sounds = { pair: [["A B", "keySwitch"]], mushra: [["0 1 2 …", "keySwitch"]], rating: [] }[trial.mode];
  const rows = [
    ["Space", "keyPlay"], ...sounds, ["← →", "keySeek"], ["[ ] L", "keyLoop"],
    ...(trial.spans ? [["M", "keyMark"]] : []), ...questions.help, ["Enter", "keyNext"], ["S", "keySkip"], ["R", "keyReport"],
  ];
  $("keys").replaceChildren(...rows.flatMap(([keys, name]) =>
    [make("span", {}, ...keys.split(" ").flatMap((key) => [make("kbd", { textContent: key }), " "]), text(name)), " "]));
}

// Space always plays; Enter presses what is in focus, and goes on where nothing is.
export function onKey(event) {
  if (!trial || event.ctrlKey || event.metaKey || event.altKey) return;
  const focus = document.activeElement;
  if (focus.matches("textarea, input[type=text], select")) {
    if (event.key === "Escape") focus.blur();
    return;
  }
  if (event.key === "Enter" && focus.matches("button, a, summary")) return;
  if (focus.matches("input[type=range]") && focus.id !== "seek" && event.key.startsWith("Arrow")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = { ...common, ...soundKeys(), ...questions.keys }[key];
  if (!action) return;
  event.preventDefault();
  action();
}
