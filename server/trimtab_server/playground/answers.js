/** The two answers on the page: their text, their state, their figures. */

import { Refusal } from "./api.js";
import { by, element, number, signed } from "./dom.js";
import { latest, spent } from "./steps.js";

/** @typedef {import("./runs.js").Run} Run */

/** @param {Run} run */
export function stateOf(run) {
  const fresh = run.tokens.length - run.begins;
  switch (run.state) {
    case "waiting":
      return "";
    case "running":
      return fresh ? "writing…" : "waiting…";
    case "stopped":
      return `stopped after ${fresh} tokens`;
    case "interrupted":
      return `interrupted: the connection ended after ${fresh} tokens`;
    case "refused":
      return run.error instanceof Refusal && fresh === 0 ? "refused" : "failed";
    default:
      return run.finish === "length" ? "ended at its limit of tokens" : "";
  }
}

/**
 * Show the state and the figures of an answer.
 * @param {"base" | "guided"} side
 * @param {Run} run
 * @param {Run | null} base to which its rewards are compared
 * @param {(name: string) => string} colour
 */
export function showFigures(side, run, base, colour) {
  const state = by(`state-${side}`);
  state.textContent = stateOf(run);
  state.classList.toggle("bad", run.state === "interrupted" || run.state === "refused");
  const figures = [["tokens", String(run.tokens.length), ""]];
  if (side === "guided") figures.unshift(["KL, nats", number(spent(run.tokens).at(-1) ?? 0), ""]);
  const scores = run.record?.scores ?? latest(run.tokens);
  for (const [name, score] of Object.entries(scores)) {
    const other = base?.record?.scores?.[name];
    const change = other === undefined ? "" : ` (${signed(score - other)})`;
    figures.push([name, number(score) + change, colour(name)]);
  }
  by(`figures-${side}`).replaceChildren(
    ...figures.map(([name, value, own]) =>
      element("div", { class: own || undefined }, [
        element("dt", { text: name }),
        element("dd", { text: value }),
      ]),
    ),
  );
}

/**
 * The text of an answer.
 * @param {Run} run
 */
export function textOf(run) {
  return run.tokens.map((token) => token.text).join("");
}

/** Add what the base's answer has grown by. */
export function showBase(run) {
  const box = by("text-base");
  const text = textOf(run);
  if (box.textContent === text) return;
  const follows = box.scrollTop + box.clientHeight > box.scrollHeight - 40;
  box.textContent = text;
  if (follows) box.scrollTop = box.scrollHeight;
}
