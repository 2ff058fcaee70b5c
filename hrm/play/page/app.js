// The page: edit a board, let the model think, step through its segments.
import { taskOf } from "./tasks.js";
import { makeThinker } from "./thinkers.js";

const $ = (id) => document.getElementById(id);
const sigmoid = (q) => 1 / (1 + Math.exp(-q));
const percent = (value) => `${(100 * value).toFixed(value > 0.999 && value < 0.99995 ? 2 : 1)} %`;
const PAUSE = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 350; // milliseconds between shown segments

let catalogue, thinker, model, task;
let puzzle = []; // tokens
let cursor = 0; // the selected cell
let running = null; // AbortController while the model thinks
let attempts = []; // { frames: [{ tokens, q, residual, changed }], halted, reason }
let shown = 0, at = 0; // the attempt and the segment on the board; segment 0 is the puzzle
let problem = { cells: new Set(), reason: null };

// Choosing a model

async function start() {
  catalogue = await (await fetch("models.json")).json();
  thinker = await makeThinker(catalogue);
  $("model").replaceChildren(...catalogue.models.map((one) => new Option(one.title ?? one.name, one.name)));
  $("model").closest("label").hidden = false;
  choose(catalogue.models[0]);
}

function choose(chosen) {
  stop();
  model = chosen;
  task = taskOf(model);
  $("model").value = model.name;
  $("hint").textContent = `${task.hint}. One line or several.`;
  $("limit").value = model.halt_max_steps;
  const rules = model.calibrated ? [["calibrated", "when sure"]] : []; // the first one is the default
  rules.push(["q", "when sure (Q)"], ["stable", "answer rests for 2"], ["residual", "state rests"], ["check", "when the answer is valid"], ["fixed", "after all segments"]);
  $("halt").replaceChildren(...rules.map(([value, text]) => new Option(text, value)));
  makeBoard();
  makePad();
  take(model.example ? task.parse(model.example) : Array(task.cells).fill(task.blank));
}

// The board

function makeBoard() {
  const board = $("board");
  board.style.gridTemplateColumns = board.style.gridTemplateRows = `repeat(${task.size}, minmax(0, 1fr))`;
  board.style.fontSize = `clamp(0.6rem, ${Math.round(200 / task.size) / 10}rem, 2.2rem)`;
  board.replaceChildren();
  for (let row = 0; row < task.size; row++) {
    const line = board.appendChild(document.createElement("div"));
    line.setAttribute("role", "row");
    for (let column = 0; column < task.size; column++) {
      const cell = line.appendChild(document.createElement("div"));
      cell.setAttribute("role", "gridcell");
      cell.dataset.cell = row * task.size + column;
    }
  }
}

const cells = () => [...$("board").querySelectorAll("[data-cell]")];

function draw() {
  const attempt = attempts[shown], frame = at && attempt ? attempt.frames[at - 1] : null;
  const tokens = frame ? frame.tokens : puzzle;
  const wrong = frame ? task.wrong(puzzle, tokens) : problem.cells;
  cells().forEach((cell, index) => {
    const edges = task.edges(index), token = tokens[index], row = Math.floor(index / task.size), column = index % task.size;
    const classes = ["cell", task.kind(token, task.isGiven(puzzle[index]))];
    if (edges.top) classes.push("top");
    if (edges.left) classes.push("left");
    if (!row) classes.push("first-row");
    if (!column) classes.push("first-column");
    if (frame?.changed[index]) classes.push("fresh");
    if (wrong.has(index)) classes.push("wrong");
    if (index === cursor && !frame) classes.push("cursor");
    cell.className = classes.join(" ");
    cell.textContent = task.text(token);
    cell.tabIndex = index === cursor ? 0 : -1;
    cell.setAttribute("aria-label", `row ${row + 1} column ${column + 1}: ${task.label(token)}${frame?.changed[index] ? ", changed" : ""}`);
  });
  drawSteps();
}

function select(index) {
  cursor = (index + task.cells) % task.cells;
  draw();
  cells()[cursor].focus();
}

function take(tokens) {
  stop();
  puzzle = tokens;
  attempts = [];
  shown = at = 0;
  problem = task.examine(puzzle);
  const blank = puzzle.every((token) => token === task.blank);
  if (blank) problem = { cells: new Set(), reason: null };
  $("solve").disabled = Boolean(problem.reason);
  say(problem.reason ?? problem.note ?? (blank ? "Type a puzzle, or paste one." : "Ready."), problem.reason ? "bad" : "");
  draw();
}

function write(token) {
  take(task.put(puzzle, cursor, token));
  cells()[cursor].focus();
}

function makePad() {
  const buttons = task.keys.map(({ key, name, token }) => padButton(name ? `${key} ${name}` : key, token));
  if (!task.keys.some((one) => one.token === task.eraser)) buttons.push(padButton("⌫", task.eraser, "blank"));
  $("pad").classList.toggle("words", task.keys.some((one) => one.name));
  $("pad").replaceChildren(...buttons);
}

function padButton(text, token, label) {
  const button = document.createElement("button");
  button.textContent = text;
  if (label) button.setAttribute("aria-label", label);
  button.addEventListener("click", () => write(token));
  return button;
}

function say(text, kind = "", more = "") {
  const line = $("verdict");
  line.className = kind;
  line.textContent = text;
  if (more) line.append(Object.assign(document.createElement("span"), { className: "more", textContent: more }));
}

// Thinking

function halts(attempt) {
  const { frames } = attempt, last = frames.at(-1), rule = $("halt").value;
  const rests = (test, count) => frames.length >= count && frames.slice(-count).every(test);
  if (rule === "calibrated") return calibrated(model.calibrated, attempt);
  if (rule === "q") return last.qHalt > last.qContinue;
  if (rule === "stable") return frames.length > 2 && rests((frame) => frame.moved === 0, 2);
  if (rule === "residual") return rests((frame) => frame.residual < 0.01, 2);
  if (rule === "check") return task.check(puzzle, last.tokens) === null;
  return false;
}

// The rule that hrm calibrate stored: { rule, threshold }; several are joined by |.
function calibrated({ rule, threshold }, { frames }) {
  const last = frames.at(-1);
  return rule.split("|").some((one) => {
    if (one === "q") return last.qHalt > last.qContinue;
    if (one === "margin") return last.qHalt - last.qContinue > threshold;
    return frames.length > 1 && frames.slice(-2).every((frame) => frame.residual < threshold);
  });
}

async function think() {
  if (problem.reason) return;
  stop();
  const controller = (running = new AbortController()), count = Number($("attempts").value);
  const limit = Math.max(1, Math.min(256, Number($("limit").value) || model.halt_max_steps));
  const same = { there: (tokens) => tokens, back: (tokens) => tokens };
  const views = Array.from({ length: count }, (_, number) => (number ? task.symmetry() : same));
  attempts = views.map(() => ({ frames: [], halted: false, reason: null }));
  shown = at = 0;
  $("solve").textContent = "Stop";
  say(count > 1 ? `${count} attempts: the puzzle itself, and turned or renamed.` : "Thinking …");
  try {
    let next = performance.now();
    for await (const segment of thinker.segments(model, views.map((view) => view.there(puzzle)), limit, controller.signal)) {
      if (controller.signal.aborted) return;
      attempts.forEach((attempt, number) => {
        if (attempt.halted) return;
        const before = attempt.frames.at(-1)?.tokens ?? puzzle, tokens = views[number].back(segment.tokens[number]);
        const changed = tokens.map((token, cell) => token !== before[cell]);
        attempt.frames.push({
          tokens, changed, moved: changed.filter(Boolean).length, qHalt: segment.qHalt[number],
          qContinue: segment.qContinue[number], residual: segment.residual[number],
        });
        attempt.halted = attempt.frames.length >= limit || halts(attempt);
        attempt.reason = task.check(puzzle, tokens);
      });
      shown = best();
      at = attempts[shown].frames.length;
      draw();
      if (attempts.every((attempt) => attempt.halted)) break;
      next = Math.max(next + PAUSE, performance.now());
      await new Promise((resume) => setTimeout(resume, next - performance.now()));
    }
    if (!controller.signal.aborted) conclude();
  } catch (error) {
    if (!controller.signal.aborted) say(`The model could not run: ${error.message}`, "bad");
  } finally {
    controller.abort();
    if (running === controller) stop();
  }
}

// The attempt to show: a valid one that ended first, else the answer of most attempts, else the surest.
function best() {
  const votes = new Map(), key = (attempt) => attempt.frames.at(-1).tokens.join();
  for (const attempt of attempts) votes.set(key(attempt), (votes.get(key(attempt)) ?? 0) + 1);
  const rank = (attempt) => [attempt.halted && !attempt.reason ? 1 : 0, votes.get(key(attempt)), attempt.frames.at(-1).qHalt];
  return attempts.reduce((chosen, attempt, number) => {
    const [mine, theirs] = [rank(attempt), rank(attempts[chosen])];
    const first = mine.findIndex((value, index) => value !== theirs[index]);
    return first >= 0 && mine[first] > theirs[first] ? number : chosen;
  }, 0);
}

function conclude() {
  const { frames, reason } = attempts[shown], segments = frames.length === 1 ? "1 segment" : `${frames.length} segments`;
  const valid = attempts.filter((attempt) => !attempt.reason).length;
  const more = `${segments}, confidence ${percent(sigmoid(frames.at(-1).qHalt))}` + (attempts.length > 1 ? `; ${valid} of ${attempts.length} attempts are valid` : "");
  if (reason) say(`Not solved: ${reason}.`, "bad", more);
  else say("Solved. The answer is valid.", "good", more);
  draw();
}

function stop() {
  running?.abort();
  running = null;
  $("solve").textContent = "Solve";
}

// Stepping

function drawSteps() {
  const attempt = attempts[shown], frames = attempt?.frames ?? [];
  $("steps").hidden = !frames.length;
  $("intro").hidden = Boolean(frames.length);
  if (!frames.length) return;
  $("at").max = frames.length;
  $("at").value = at;
  $("at").setAttribute("aria-valuetext", at ? `after segment ${at}` : "the puzzle");
  $("first").disabled = $("back").disabled = at === 0;
  $("last").disabled = $("forward").disabled = at === frames.length;
  $("choices").replaceChildren(
    ...(attempts.length < 2 ? [] : attempts.map((one, number) => {
      const button = document.createElement("button");
      button.className = one.halted ? (one.reason ? "invalid" : "valid") : "";
      button.textContent = `attempt ${number + 1}`;
      button.title = `attempt ${number + 1}: ${one.reason ?? "valid"}, ${one.frames.length} segments`;
      button.setAttribute("aria-pressed", number === shown);
      button.addEventListener("click", () => { shown = number; go(one.frames.length); });
      return button;
    })),
  );
  const largest = Math.max(...frames.map((frame) => frame.residual), 1e-9);
  const rows = [["puzzle", "", "", ""], ...frames.map((frame, index) => [String(index + 1), String(frame.moved), sigmoid(frame.qHalt), frame.residual])];
  $("frames").replaceChildren(
    ...rows.map(([name, moved, confidence, residual], index) => {
      const row = document.createElement("tr");
      row.className = [index === at ? "current" : "", index && index === frames.length && attempt.halted ? "halted" : ""].join(" ");
      for (const text of [name, moved]) row.insertCell().textContent = text;
      measured(row.insertCell(), confidence, percent, confidence);
      measured(row.insertCell(), residual, (value) => value.toPrecision(2), residual / largest);
      row.addEventListener("click", () => go(index));
      return row;
    }),
  );
}

function measured(cell, value, text, share) {
  if (value === "") return;
  cell.textContent = text(value);
  const bar = cell.appendChild(document.createElement("span"));
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), rect = document.createElementNS(svg.namespaceURI, "rect");
  rect.setAttribute("height", "100%");
  rect.setAttribute("width", `${100 * Math.max(0, Math.min(1, share))}%`);
  svg.append(rect);
  bar.append(svg);
}

function go(segment) {
  const frames = attempts[shown]?.frames ?? [];
  if (!frames.length) return;
  at = Math.max(0, Math.min(frames.length, segment));
  draw();
}

// Keys and buttons

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog").open) return;
  const onBoard = event.target.closest?.("#board"), inField = event.target.matches?.("input, select, textarea");
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -task.size, ArrowDown: task.size };
  const act = (action) => { event.preventDefault(); action(); };
  const thought = attempts.length > 0;
  if (event.key === "Escape" && thought) return act(() => { take(puzzle); cells()[cursor].focus(); });
  if (inField) return;
  if (thought && event.key === ",") return act(() => go(at - 1));
  if (thought && event.key === ".") return act(() => go(at + 1));
  if (thought && event.key === "Home") return act(() => go(0));
  if (thought && event.key === "End") return act(() => go(Infinity));
  if (!onBoard) return;
  if (event.key in moves) return act(() => select(cursor + moves[event.key]));
  if (event.key === "Enter") return act(think);
  const letter = event.key.length === 1 ? event.key : "";
  const typed = task.keys.find((one) => one.key.toLowerCase() === letter.toLowerCase());
  if (letter && typed) return act(() => write(typed.token));
  if (["Backspace", "Delete", "0", " "].includes(event.key)) return act(() => write(task.eraser));
}

function paste(text) {
  take(task.parse(text));
}

$("model").addEventListener("change", () => choose(catalogue.models.find((one) => one.name === $("model").value)));
$("board").addEventListener("click", (event) => { const cell = event.target.closest("[data-cell]"); if (cell) select(Number(cell.dataset.cell)); });
$("solve").addEventListener("click", () => (running ? stop() : think()));
$("example").addEventListener("click", () => model.example && take(task.parse(model.example)));
$("clear").addEventListener("click", () => { take(Array(task.cells).fill(task.blank)); select(0); });
$("paste").addEventListener("click", () => { $("problem").textContent = ""; $("dialog").showModal(); $("text").select(); });
$("take").addEventListener("click", (event) => {
  try {
    paste($("text").value);
  } catch (error) {
    event.preventDefault();
    $("problem").textContent = error.message;
  }
});
$("first").addEventListener("click", () => go(0));
$("back").addEventListener("click", () => go(at - 1));
$("forward").addEventListener("click", () => go(at + 1));
$("last").addEventListener("click", () => go(Infinity));
$("at").addEventListener("input", () => go(Number($("at").value)));
document.addEventListener("keydown", onKey);
document.addEventListener("paste", (event) => {
  if (event.target.matches?.("textarea, input")) return;
  event.preventDefault();
  try {
    paste(event.clipboardData.getData("text"));
  } catch (error) {
    say(error.message, "bad");
  }
});

start().catch((error) => say(`The page could not start: ${error.message}`, "bad"));
