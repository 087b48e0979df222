// Progress of a study, for the person who runs it. The token stands behind # and leaves the browser in a header only.

const $ = (id) => document.getElementById(id);
const token = decodeURIComponent(location.hash.slice(1));
const headers = { Authorization: `Bearer ${token}` };
const percent = (share) => `${Math.round(100 * share)} %`;
const ratio = ([part, all]) => (all ? `${percent(part / all)} of ${all}` : "–");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function fact(label, value, note = "") {
  const name = make("dt", { textContent: label });
  if (note) name.append(make("small", { textContent: note }));
  return make("div", {}, name, make("dd", { textContent: value }));
}

const interval = ([low, high], format = (x) => x.toFixed(2)) => `${format(low)} to ${format(high)}`;

function showFacts(p) {
  const facts = [
    fact("Listeners", p.raters.length, p.deleted ? `${p.deleted} deleted their data` : ""),
    fact(p.mode === "pair" ? "Votes" : "Opinions", p.mode === "pair" ? p.votes : p.opinions, `${p.skipped} skipped, ${p.reports} reported`),
    fact("Songs", p.songs, `${p.pairs} ${p.mode === "mushra" ? "pages" : "pairs"}`),
  ];
  if (p.mode === "pair") {
    facts.push(fact("Right on control pairs", p.gold[1] ? percent(p.gold[0] / p.gold[1]) : "–", p.gold[1] ? `${p.gold[0]} of ${p.gold[1]}` : ""));
    facts.push(fact("Same answer again", p.repeats[1] ? percent(p.repeats[0] / p.repeats[1]) : "–", p.repeats[1] ? `${p.repeats[1]} repeats, sides exchanged` : ""));
    facts.push(fact("For the left side", p.side[1] ? percent(p.side[0] / p.side[1]) : "–", p.side[1] ? `${p.side[1]} decided votes` : ""));
  }
  if (typeof p.agreement === "number") facts.push(fact("Agreement", p.agreement.toFixed(2), "Krippendorff's α"));
  $("facts").replaceChildren(...facts);
}

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, values) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  return element;
}

function showRanking(title, rows) {
  if (!rows?.length) return [];
  const low = Math.min(0, ...rows.map((row) => row.interval[0])), high = Math.max(0, ...rows.map((row) => row.interval[1]));
  const x = (value) => `${(100 * (value - low)) / Math.max(high - low, 1e-9)}%`;
  const places = rows.map((row) => {
    const plot = draw("svg", { "aria-hidden": "true" });
    plot.append(
      draw("line", { class: "zero", x1: x(0), x2: x(0), y1: "0", y2: "100%" }),
      draw("line", { x1: x(row.interval[0]), x2: x(row.interval[1]), y1: "50%", y2: "50%" }),
      draw("circle", { cx: x(row.value), cy: "50%", r: 4.5 }),
    );
    const numbers = `${row.value.toFixed(2)} (${interval(row.interval)})`;
    return make("div", { className: "place" }, make("b", { textContent: row.name }), plot, make("span", { textContent: numbers }));
  });
  return [make("h3", { textContent: title }), ...places];
}

function showRaters(raters) {
  const columns = ["Listener", "Stage", "Answers", "Controls right", "Repeats alike", "Left", "Heard", "Headphones", "Last seen"];
  const headphones = (h) => (h.skipped ? "none" : h.of ? `${h.right} of ${h.of}` : "–");
  const rows = raters.map((r) => {
    const cells = [r.rater, r.stage, r.answers, ratio(r.gold), ratio(r.repeats), ratio(r.side), `${Math.round(r.heard_s)} s`,
      headphones(r.headphones), r.last_seen ? new Date(1000 * r.last_seen).toLocaleString() : "–"];
    const row = make("tr", {}, ...cells.map((cell, k) => make("td", { textContent: cell, className: k === 2 ? "n" : "" })));
    if (r.gold[1] && r.gold[0] / r.gold[1] < 0.5) row.children[3].classList.add("low");
    return row;
  });
  const head = make("tr", {}, ...columns.map((name, k) => make("th", { textContent: name, scope: "col", className: k === 2 ? "n" : "" })));
  $("raters").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

async function refresh() {
  const answer = await fetch("api/admin/progress", { headers }).catch(() => null);
  const content = answer ? await answer.json().catch(() => ({})) : { detail: "The server does not answer." };
  $("problem").textContent = answer?.ok ? "" : content.detail ?? "";
  $("content").hidden = !answer?.ok;
  if (!answer?.ok) return;
  $("name").textContent = content.study;
  $("when").textContent = new Date().toLocaleTimeString();
  showFacts(content);
  $("ranks").replaceChildren(
    ...showRanking("Systems", content.systems), ...showRanking("Songs, against the others of their prompt", content.ranking));
  showRaters(content.raters);
}

$("export").addEventListener("click", async () => {
  const answer = await fetch("api/admin/export", {
    method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: "{}",
  });
  const content = await answer.json();
  $("export-note").textContent = answer.ok ? `${content.votes} votes and ${content.opinions} opinions` : content.detail;
});

refresh();
setInterval(refresh, 10000);
