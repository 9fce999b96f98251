// The page's only script. It shows the snapshots that the server sends four times a second, and
// sends the buttons' actions to the server. The server has all state, so a reload loses nothing. The
// URL's fragment says which function is shown (#obvious).
"use strict";

const $ = (id) => document.getElementById(id);
const LIMITS = [1, 2, 5, 10, 25, 50, 100, 200, null]; // calls a second, in the order of the slider
const VERDICT = ["published", "on_its_way", "once", "parked", "twice", "lost"];
const INSTANCE_ROWS = 5;
const TOPS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000]; // the possible tops of the chart
const LOST = "No connection. Trying again …";
let state = null; // the last snapshot
let lane = location.hash.slice(1) || "relay";
let opened = null; // the event whose life is shown
let startedByButton = false; // whether the keyboard's focus is to be moved when the story begins
let spokenAt = 0;
let actedAt = 0; // a snapshot from before the last action must not change the controls

// -- helpers

function set(node, text) { // changes the page only if the text has changed
  const words = String(text);
  if (node.textContent !== words) node.textContent = words;
}

function mark(node, name, on) {
  if (node.classList.contains(name) !== Boolean(on)) node.classList.toggle(name, Boolean(on));
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const count = (number) => number.toLocaleString("en");
const seconds = (number) => number === null ? "–" : `${number.toFixed(number < 10 ? 1 : 0)} s`;

async function post(path, body) {
  const headers = {"Content-Type": "application/json"};
  try {
    const answer = await fetch(path, {method: "POST", headers, body: JSON.stringify(body)});
    if (!answer.ok) say((await answer.json()).detail, true);
  } catch {
    say(LOST, true);
  }
}

function say(words, isLost = false) {
  set($("connection"), words);
  mark($("connection"), "lost", isLost);
}

// -- what the page shows

function show(next) {
  state = next;
  if (!(lane in state.lanes)) lane = Object.keys(state.lanes)[0];
  const shown = state.lanes[lane];
  showVerdict();
  showPath(shown);
  showChart(shown);
  showRows(shown.rows);
  showStory(state.story);
  showControls(shown);
}

function showVerdict() {
  const body = $("verdict");
  for (const [name, {title, verdict}] of Object.entries(state.lanes)) {
    const row = $(`verdict-${name}`) ?? body.appendChild(makeVerdict(name, title));
    mark(row, "shown", name === lane);
    row.querySelector("input").checked = name === lane;
    for (const fate of VERDICT) {
      const cell = row.querySelector(`.${fate}`);
      set(cell, count(verdict[fate]));
      mark(cell, "zero", !verdict[fate]);
    }
    set(row.querySelector(".typical"), seconds(verdict.typical));
    set(row.querySelector(".slowest"), seconds(verdict.slowest));
  }
  const {by_hand: byHand} = state.lanes[lane].verdict;
  set($("by-hand"), byHand ? ` Svix has ${count(byHand)} more, posted by hand.` : "");
  if (Date.now() - spokenAt > 5000) { // a screen reader hears this every five seconds, not at each change
    spokenAt = Date.now();
    set($("spoken"), Object.values(state.lanes).map(({title, verdict}) =>
      `${title}: ${verdict.published} published, ${verdict.once} delivered once, ` +
      `${verdict.on_its_way} on their way, ${verdict.parked} parked, ${verdict.twice} twice, ` +
      `${verdict.lost} lost.`).join(" "));
  }
}

function makeVerdict(name, title) {
  const input = make("input", {type: "radio", name: "lane", value: name});
  input.addEventListener("change", () => {
    lane = name;
    history.replaceState(null, "", `#${name}`);
    show(state);
  });
  const row = make("tr", {id: `verdict-${name}`},
    make("th", {scope: "row"}, make("label", {}, input, title)));
  row.append(...VERDICT.map((fate) => make("td", {className: fate})),
    make("td", {className: "time typical"}), make("td", {className: "time slowest"}));
  return row;
}

function showPath({title, does, topic, instances, svix, endpoints, chart}) {
  set($("backlog"), count(topic.backlog));
  set($("outstanding"), count(topic.outstanding));
  set($("window"), count(topic.window));
  set($("nacks"), count(topic.nacks));
  set($("dead-letters"), count(topic.dead_letters));
  set($("pause"), topic.pause > 0 ? `${topic.pause.toFixed(1)} s` : "no");
  mark($("pause"), "warning", topic.pause > 0);
  mark($("dead-letters"), "warning", topic.dead_letters);
  set($("function-title"), title);
  set($("function-does"), does);
  showInstances(instances);
  set($("accepted"), count(svix.accepted));
  set($("refused"), count(svix.refused));
  set($("failed"), count(svix.failed));
  set($("svix-limit"), svix.limit === null ? "none" : `${svix.limit}/s`);
  set($("svix-trouble"), svix.trouble);
  mark($("svix-trouble"), "alarm", svix.trouble !== "none");
  set($("received"), count(endpoints.received));
  set($("to-send-on"), count(endpoints.to_send_on));
  set($("failing"), count(endpoints.failing));
  const last = Object.fromEntries(state.series.map((name, n) => [name, chart.at(-1)[n]]));
  showArrow("arrow-pushed", topic.outstanding, count(topic.outstanding), last.nacked);
  showArrow("arrow-sent", last.accepted, `${count(last.accepted)}/s`, last.refused);
  showArrow("arrow-received", last.received, `${count(last.received)}/s`, 0);
}

function showArrow(id, forward, words, back) {
  const [out, line, ...rest] = $(id).children;
  set(out, forward ? words : "");
  mark(line, "flows", forward);
  if (rest.length) {
    mark(rest[0], "flows", back);
    set(rest[1], back ? `${count(back)}/s` : "");
  }
}

function showInstances(instances) {
  const body = $("instances");
  while (body.rows.length < INSTANCE_ROWS) {
    body.append(make("tr", {}, ...Array.from({length: 6}, () => make("td"))));
  }
  for (const [n, row] of [...body.rows].entries()) {
    const instance = instances[n];
    const status = instance ? instance.state : "empty";
    if (row.className !== status) row.className = status;
    const {number, outstanding, waiting, in_flight: inFlight, rate} = instance ?? {};
    const paused = instance?.is_paused;
    const words = !instance ? Array(6).fill("") : [
      `${number} ${status === "up" ? "" : status}`, count(outstanding), waiting ?? "–", inFlight ?? "–",
      rate == null ? (waiting == null ? "–" : "∞") : rate < 10 ? rate.toFixed(1) : Math.round(rate),
      paused == null ? "–" : paused ? "yes" : "no",
    ];
    words.forEach((word, column) => set(row.cells[column], word));
  }
}

function showRows(rows) {
  const body = $("rows");
  $("no-rows").hidden = rows.length > 0;
  while (body.rows.length < rows.length) {
    const button = make("button", {type: "button"});
    button.addEventListener("click", () => openLife(button.dataset.project, button.dataset.id));
    body.append(make("tr", {}, make("td", {}, button), ...Array.from({length: 4}, () => make("td"))));
  }
  while (body.rows.length > rows.length) body.rows[body.rows.length - 1].remove();
  for (const [n, event] of rows.entries()) {
    const {cells} = body.rows[n];
    const button = cells[0].firstChild;
    button.dataset.project = event.project;
    button.dataset.id = event.id;
    set(button, event.id);
    set(cells[1], event.project || "–");
    set(cells[2], event.now);
    if (cells[2].className !== `fate-${event.fate}`) cells[2].className = `fate-${event.fate}`;
    set(cells[3], event.pushes);
    set(cells[4], seconds(event.delay));
  }
}

// -- the chart: accepted and refused calls as bars, published messages as thin ones, nacks as a line

function showChart({chart}) {
  const svg = $("chart");
  const at = Object.fromEntries(state.series.map((name, n) => [name, chart.map((row) => row[n])]));
  showLegend(at); // first, because it takes height from the chart
  const {width, height} = svg.getBoundingClientRect();
  if (!width) return;
  const highest = Math.max(10, ...at.accepted.map((n, i) => n + at.refused[i]), ...at.nacked);
  const top = TOPS.find((n) => n >= highest * 1.1) ?? highest;
  const [left, floor] = [34, height - 18];
  const x = (n) => left + (n * (width - left)) / chart.length;
  const y = (n) => floor - (Math.min(n, top) / top) * (floor - 14);
  const bars = (from, to) => chart.map((_, n) => to[n] === from[n] ? "" :
    `M${x(n).toFixed(1)} ${y(from[n]).toFixed(1)}V${y(to[n]).toFixed(1)}H${x(n + 1).toFixed(1)}` +
    `V${y(from[n]).toFixed(1)}Z`).join("");
  const line = (values) => values.map((value, n) =>
    `${n ? "L" : "M"}${x(n + .5).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  const none = chart.map(() => 0);
  draw(svg, "grid", `M${left} ${floor}H${width}M${left} ${y(top / 2)}H${width}M${left} ${y(top)}H${width}`);
  draw(svg, "accepted", bars(none, at.accepted));
  draw(svg, "refused", bars(at.accepted, at.accepted.map((n, i) => n + at.refused[i])));
  draw(svg, "nacked", at.nacked.some(Boolean) ? line(at.nacked) : "");
  draw(svg, "published", at.published.map((value, n) => !value ? "" :
    `M${x(n + .5).toFixed(1)} ${y(value).toFixed(1)}h2V${floor}h-2Z`).join(""));
  write(svg, "top", 0, y(top) + 4, count(top));
  write(svg, "half", 0, y(top / 2) + 4, count(top / 2));
  write(svg, "zero", 0, floor + 4, "0");
  write(svg, "then", left, height - 3, "two minutes ago");
  write(svg, "now", width - 22, height - 3, "now");
  const most = Math.max(...at.published); // a backlog is published in one second and exceeds the chart
  const peak = at.published.lastIndexOf(most);
  write(svg, "peak", Math.min(x(peak) + 5, width - 90), 10, most > top ? `${count(most)} published` : "");
}

function draw(svg, name, path) {
  let node = svg.querySelector(`.${name}`);
  if (!node) {
    node = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
    node.setAttribute("class", name);
  }
  if (node.getAttribute("d") !== path) node.setAttribute("d", path);
}

function write(svg, name, x, y, words) {
  let node = svg.querySelector(`text.${name}`);
  if (!node) {
    node = svg.appendChild(document.createElementNS(svg.namespaceURI, "text"));
    node.setAttribute("class", name);
  }
  if (node.textContent !== words) node.textContent = words;
  node.setAttribute("x", x);
  node.setAttribute("y", y);
}

function showLegend(at) {
  const list = $("legend");
  for (const name of state.series.filter((series) => series !== "received")) {
    const item = list.querySelector(`.series-${name}`) ?? list.appendChild(
      make("li", {className: `series-${name}`}, name === "refused" ? "refused or failed" : name,
        " ", make("b")));
    set(item.querySelector("b"), count(at[name].at(-1)));
  }
  const sums = state.series.map((name) => `${count(at[name].reduce((a, b) => a + b, 0))} ${name}`);
  set($("chart-words"), `In the last two minutes: ${sums.join(", ")}.`);
}

// -- stories

function makeStories(stories) {
  $("stories").replaceChildren(...stories.map(({name, title, about}) => {
    const button = make("button", {type: "button", id: `story-${name}`},
      make("b", {}, title), make("span", {}, about));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      startedByButton = true;
      post("story", {name});
    });
    return button;
  }));
}

function showStory(story) {
  for (const button of $("stories").children) {
    const isPlaying = state.is_playing && button.id === `story-${story?.name}`;
    if (button.getAttribute("aria-pressed") !== String(isPlaying)) {
      button.setAttribute("aria-pressed", isPlaying);
    }
    if (button.disabled !== state.is_playing) button.disabled = state.is_playing;
  }
  $("end-story").hidden = !state.is_playing;
  if (state.is_playing && startedByButton) { // the story's own button is disabled now
    startedByButton = false;
    $("end-story").focus();
  }
  if (!story) return;
  const key = `${story.name} ${story.state} ${story.step}`;
  const text = $("story-text");
  if (text.dataset.key === key) return;
  text.dataset.key = key;
  text.dataset.state = story.state;
  text.replaceChildren(...describe(story));
}

function describe({title, sentences, step, state: phase, outcomes, failure}) {
  const head = (words) => make("p", {className: "step"}, words);
  switch (phase) {
    case "starting":
      return [head(title), make("p", {}, "Both functions start over …")];
    case "playing":
      return [head(`${title}, ${step + 1} of ${sentences.length}`), make("p", {}, sentences[step])];
    case "ended":
      return [head(`${title}: the outcome`),
        ...Object.values(outcomes).map(({sentence}) => make("p", {className: "outcome"}, sentence))];
    default:
      return [head(`${title}: stopped`), make("p", {}, failure ?? "You ended the story.")];
  }
}

// -- actions

function showControls({title, svix, endpoints, instances, is_restarting: isRestarting, most_instances: most}) {
  set($("acts-on"), title[0].toLowerCase() + title.slice(1));
  const controls = $("controls");
  const disabled = state.is_playing || isRestarting;
  if (controls.disabled !== disabled) controls.disabled = disabled;
  const running = instances.filter((each) => each.state !== "ending" && each.state !== "ended").length;
  for (const [change, isDisabled] of [[1, running >= most], [-1, running <= 1]]) {
    const button = document.querySelector(`[data-change="${change}"]`);
    if (button.disabled !== isDisabled) button.disabled = isDisabled;
  }
  if (state.at * 1000 < actedAt) return;
  $("limit").value = LIMITS.indexOf(svix.limit);
  showLimit();
  $("endpoints-fail").checked = endpoints.answer >= 400;
  for (const input of document.querySelectorAll("input[name=trouble]")) {
    input.checked = input.value === svix.trouble;
  }
}

function showLimit() {
  const limit = LIMITS[$("limit").value];
  set($("limit-words"), limit === null ? "no limit" : String(limit));
}

async function act(action) {
  const projects = $("twenty").checked ? 20 : 1;
  actedAt = Infinity;
  await post("do", {lane, projects, ...action});
  actedAt = Date.now();
}

for (const button of document.querySelectorAll("[data-do]")) {
  button.addEventListener("click", () => act(JSON.parse(button.dataset.do)));
}
for (const input of document.querySelectorAll("input[name=trouble]")) {
  input.addEventListener("change", () => act({action: "trouble", trouble: input.value}));
}
$("limit").addEventListener("input", () => {
  showLimit();
  act({action: "limit", rate: LIMITS[$("limit").value]});
});
$("endpoints-fail").addEventListener("change", (event) =>
  act({action: "endpoints", fail: event.target.checked}));
$("end-story").addEventListener("click", () => post("story", {}));

// -- the life of one event

async function openLife(project, id) {
  opened = {project, id, lane};
  $("life-entries").replaceChildren();
  set($("life-title"), id);
  set($("life-fate"), "");
  $("life").showModal();
  await showLife();
}

async function showLife() {
  if (!opened) return;
  const asked = opened;
  const answer = await fetch(`life?${new URLSearchParams(asked)}`).catch(() => null);
  if (!answer?.ok || asked !== opened) return;
  const {fate, entries} = await answer.json();
  set($("life-fate"), `${asked.project ? `Customer: ${asked.project}. ` : ""}Now: ${fate}.`);
  const body = $("life-entries");
  const began = entries[0][0];
  for (const [n, [at, where, what]] of entries.entries()) {
    const row = body.rows[n] ?? body.appendChild(
      make("tr", {}, ...Array.from({length: 4}, () => make("td"))));
    const time = new Date(at * 1000);
    const clock = time.toLocaleTimeString("en-GB") + "." + String(time.getMilliseconds()).padStart(3, "0");
    [clock, `+${(at - began).toFixed(3)} s`, where, what].forEach((words, c) => set(row.cells[c], words));
  }
  while (body.rows.length > entries.length) body.rows[body.rows.length - 1].remove();
}
$("life").addEventListener("close", () => { opened = null; });
setInterval(showLife, 1000);

// -- the server

const live = new EventSource("live");
live.addEventListener("stories", (message) => makeStories(JSON.parse(message.data)));
live.addEventListener("message", (message) => {
  say("Live");
  show(JSON.parse(message.data));
});
live.addEventListener("error", () => say(LOST, true));
