/** The playground: what happens when somebody does something. */

import { showBase, showFigures, textOf } from "./answers.js";
import { Refusal, ask, key } from "./api.js";
import { showTree } from "./branches.js";
import * as controls from "./controls.js";
import { announce, by, element } from "./dom.js";
import { inspect } from "./inspector.js";
import { showColours, showScale } from "./legend.js";
import { drawCourse, drawSweep } from "./plots.js";
import { Tree, created, generate } from "./runs.js";
import { guided, read, written } from "./settings.js";
import { curl, python } from "./snippets.js";
import { course, spent } from "./steps.js";
import { ANSWERS, reward, sweep } from "./sweep.js";
import { TokenList } from "./tokens.js";

const PLOT_MS = 250; // figures and the course are drawn once in this time, while an answer grows
const SAID = 400; // characters of an answer that are announced

const page = {
  scorers: [],
  base: created(),
  tree: new Tree(read("").set),
  generated: false,
  busy: false, // whether answers are being generated
  points: [],
  stop: new AbortController(),
};
const list = new TokenList(by("text-guided"), showStep);
let frame = 0;
let plotted = 0;
let drawing = 0;

// --- start ---------------------------------------------------------------------------------------

async function start() {
  const wanted = read(location.hash);
  controls.fill(wanted.set);
  try {
    const [models, scorers] = await Promise.all([ask("v1/models"), ask("v1/scorers")]);
    by("model").textContent = models.data[0]?.id ?? "";
    page.scorers = scorers.data;
  } catch (error) {
    report(error);
    return;
  }
  showKeyForm(false);
  const names = page.scorers.map((scorer) => scorer.id);
  const weights = { ...wanted.set.scorers };
  if (Object.keys(weights).length === 0 && names.length) weights[names[0]] = 1;
  controls.showScorers(page.scorers, weights);
  showColours(names);
  recolour();
  draw();
  if (wanted.tree) await restore(wanted.tree);
}

/** @param {{branches: import("./settings.js").Branch[], shown: number}} wanted */
async function restore(wanted) {
  await run();
  for (const { parent, at, token } of wanted.branches) {
    if (page.tree.branch(parent, at, token) === null) break; // the answer is another one by now
    await open(page.tree.runs.length - 1);
  }
  if (wanted.shown < page.tree.runs.length) await open(wanted.shown);
}

// --- generating ----------------------------------------------------------------------------------

async function run() {
  controls.clearErrors();
  const set = controls.readForm();
  const odd = Object.keys(set).find((name) => Number.isNaN(set[name]));
  if (odd) {
    controls.showError(odd, "Give a number.");
    return;
  }
  page.stop.abort();
  page.stop = new AbortController();
  page.base = created();
  page.tree = new Tree(set);
  page.generated = true;
  page.points = [];
  list.replace(page.tree.current.tokens);
  by("inspector").hidden = true;
  by("sweep-plot").replaceChildren();
  by("text-base").textContent = "";
  remember();
  announce("Generating.");
  if (matchMedia("(max-width: 760px)").matches) by("answers").scrollIntoView();
  const unsteered = { ...set, strength: "beta", beta: 0 };
  await busy([
    generate(page.base, unsteered, { trace: false, signal: page.stop.signal, grown: draw }),
    generate(page.tree.current, set, { trace: true, signal: page.stop.signal, grown: draw }),
  ]);
  const failed = [page.tree.current, page.base].find((one) => one.state === "refused");
  if (failed) report(failed.error);
  else announce(`The guided answer: ${said(page.tree.current)}`);
}

/** @param {import("./runs.js").Run} answer */
function said(answer) {
  const text = textOf(answer);
  return text.length > SAID ? `${text.slice(0, SAID)}…` : text;
}

/**
 * Wait for answers, with a button that stops them.
 * @param {Promise<void>[]} work
 */
async function busy(work) {
  const { signal } = page.stop;
  page.busy = true;
  by("stop").hidden = false;
  by("sweep").disabled = true;
  await Promise.all(work);
  if (signal !== page.stop.signal) return; // another one has begun since
  page.busy = false;
  by("stop").hidden = true;
  draw();
}

/**
 * Continue the answer that is shown from another token.
 * @param {number} at
 * @param {number} token
 */
async function branch(at, token) {
  const made = page.tree.branch(page.tree.shown, at, token);
  if (made !== null) await open(made);
}

/**
 * Show an answer of the tree; it is generated if it was not.
 * @param {number} index
 */
async function open(index) {
  const { tree } = page;
  tree.shown = index;
  list.replace(tree.current.tokens);
  by("inspector").hidden = true;
  remember();
  draw();
  if (tree.current.state !== "waiting") return;
  if (page.stop.signal.aborted) page.stop = new AbortController();
  const { current } = tree;
  const options = { trace: true, signal: page.stop.signal, grown: draw };
  await busy([generate(current, tree.set, options)]);
  if (current.state === "refused") report(current.error);
  else announce(`The branch: ${said(current)}`);
}

async function drawSweepOfBeta() {
  const { set } = page.tree;
  page.busy = true;
  by("sweep").disabled = true;
  const { signal } = page.stop;
  by("sweep-note").textContent = "Generating…";
  try {
    await sweep(set, signal, (points) => {
      page.points = [...points];
      drawPoints();
    });
  } catch (error) {
    if (!signal.aborted) report(error);
  }
  by("sweep-note").textContent = page.points.length
    ? `Each point: ${ANSWERS} answers at one β, mean ± standard error. Reward: the scores by their weights.`
    : "";
  if (signal !== page.stop.signal) return; // other answers have begun since
  page.busy = false;
  draw();
}

// --- showing -------------------------------------------------------------------------------------

/** Show what has changed, once a frame. */
function draw() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    const { tree, base } = page;
    showBase(base);
    const whole = list.grow();
    const running = tree.current.state === "running";
    by("text-guided").setAttribute("aria-busy", String(running));
    const pause = running || !whole ? Math.max(PLOT_MS - (performance.now() - plotted), 0) : 0;
    drawing ||= setTimeout(drawRest, pause); // in a task of its own
    if (!whole) draw();
  });
}

function drawRest() {
  const { tree, base } = page;
  drawing = 0;
  plotted = performance.now();
  showFigures("base", base, null, controls.colourOf);
  showFigures("guided", tree.current, base, controls.colourOf);
  plot();
  if (tree.current.state === "running") return;
  showTree(tree, open);
  drawPoints();
  by("sweep").disabled = page.busy || !list.whole || tree.current.record === null;
}

function plot() {
  const { tokens } = page.tree.current;
  if (!tokens.length) {
    const text = "The KL that was spent, and each scorer's score, token by token.";
    by("running").replaceChildren(element("p", { class: "note", text }));
    return;
  }
  const names = page.scorers.map((scorer) => scorer.id).filter((id) => page.tree.set.scorers[id]);
  drawCourse(
    by("running"),
    spent(tokens),
    names.map((name) => {
      return { name, colour: controls.colourOf(name), values: course(tokens, name) };
    }),
  );
}

function drawPoints() {
  const { tree } = page;
  if (!page.points.length) {
    const text = "Which rewards other strengths reach, and at which KL: several answers at each β.";
    by("sweep-plot").replaceChildren(element("p", { class: "note", text }));
    return;
  }
  const { record, tokens } = tree.current;
  const here = record && { kl: spent(tokens).at(-1) ?? 0, reward: reward(record, tree.set) };
  drawSweep(by("sweep-plot"), page.points, here);
}

/** @param {number} index */
function showStep(index) {
  const { tokens } = page.tree.current;
  inspect(tokens, index, page.tree.set, controls.colourOf, (id) => branch(index, id));
}

function recolour() {
  const colour = by("colour").value;
  const scorer = page.scorers.find(({ id }) => colour === `score:${id}`);
  const deviation = scorer?.deviation || 1;
  list.repaint(colour, deviation);
  draw();
  showScale(colour, deviation);
}

// --- errors, the key, the address ----------------------------------------------------------------

/** @param {any} error */
function report(error) {
  if (error instanceof Refusal && error.status === 401) {
    showKeyForm(true);
    by("error-key").textContent = key.get()
      ? "The server does not know this key."
      : "This server needs an API key.";
    by("key").focus();
  } else controls.showError(error.param ?? null, error.message);
}

/** @param {boolean} shown */
function showKeyForm(shown) {
  by("key-form").hidden = !shown;
  by("open-key").setAttribute("aria-expanded", String(shown));
}

function remember() {
  const { tree } = page;
  const generated = page.generated && { branches: tree.branches, shown: tree.shown };
  const set = generated ? tree.set : controls.readForm();
  history.replaceState(null, "", `#${written(set, generated || null)}`);
}

/** The answers that are shown are no longer those of the form. */
function changed() {
  history.replaceState(null, "", `#${written(controls.readForm(), null)}`);
}

/** @param {string} text */
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied.");
  } catch {
    button.textContent = "Copy it from below";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

/** @param {(url: string, body: object, key: boolean) => string} write */
function showCode(write, button) {
  const { tree } = page;
  const set = page.generated ? tree.set : controls.readForm();
  const { tokens, begins } = tree.current;
  const answer = tokens.slice(0, begins).map((token) => token.id);
  const url = new URL("generate", location.href).href;
  const text = write(url, guided(set, page.generated ? answer : []), key.get() !== "");
  by("code").hidden = false;
  by("code").textContent = text;
  copy(text, button);
}

by("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
by("controls").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
by("controls").addEventListener("input", () => {
  controls.showStrength();
  changed();
});
by("stop").addEventListener("click", () => page.stop.abort());
by("sweep").addEventListener("click", drawSweepOfBeta);
by("colour").addEventListener("change", recolour);
by("close-step").addEventListener("click", () => {
  by("inspector").hidden = true;
  list.leave();
  by("text-guided").focus();
});
by("open-key").addEventListener("click", () => {
  showKeyForm(by("key-form").hidden);
  if (!by("key-form").hidden) by("key").focus();
});
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(by("key").value.trim());
  by("key").value = "";
  controls.clearErrors();
  start();
});
by("copy-link").addEventListener("click", () => copy(location.href, by("copy-link")));
by("copy-curl").addEventListener("click", () => showCode(curl, by("copy-curl")));
by("copy-python").addEventListener("click", () => showCode(python, by("copy-python")));
controls.linkDials();
let width = innerWidth;
addEventListener("resize", () => {
  if (width !== innerWidth) draw();
  width = innerWidth;
});
start();
