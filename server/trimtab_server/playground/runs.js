/** Answers in progress: requests, their tokens as they arrive, and the tree of branches. */

import { Interrupted, events } from "./api.js";
import { guided } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {import("./steps.js").Token} Token */

/**
 * An answer. The first tokens of a branch are those of its parent, and the one that was chosen.
 * @typedef {object} Run
 * @property {Token[]} tokens
 * @property {number} begins tokens that were there before it was generated
 * @property {"waiting" | "running" | "done" | "stopped" | "interrupted" | "refused"} state
 * @property {string | null} finish
 * @property {any} record
 * @property {Error | null} error
 * @property {number | null} parent
 * @property {number} at the position of the token that was chosen
 */

/**
 * @param {Token[]} [tokens] that are already there
 * @param {number | null} [parent]
 * @returns {Run}
 */
export function created(tokens = [], parent = null) {
  const fields = { finish: null, record: null, error: null };
  const at = tokens.length - 1;
  return { tokens, begins: tokens.length, state: "waiting", parent, at, ...fields };
}

/**
 * The tokens of an event: usually one; several arrive together where the engine was ahead.
 * @param {any} choice
 * @returns {Token[]}
 */
function tokensOf(choice) {
  const steps = choice.trace ?? [];
  const ids = choice.token_ids;
  const texts = ids.map((id, i) => {
    const step = steps[i];
    return step?.texts?.[step.candidates.indexOf(id)] ?? "";
  });
  if (ids.length === 1 || texts.join("") !== choice.text) {
    texts.fill("");
    texts[0] = choice.text;
  }
  return ids.map((id, i) => ({ id, text: texts[i], step: steps[i] ?? null }));
}

/**
 * Generate the rest of an answer.
 * @param {Run} run
 * @param {Settings} set
 * @param {{trace: boolean, signal: AbortSignal, grown: () => void}} options `grown` is called
 *     whenever the run has changed
 */
export async function generate(run, set, { trace, signal, grown }) {
  const answer = run.tokens.map((token) => token.id);
  const body = { ...guided(set, answer), stream: true, ...(trace ? { trace } : {}) };
  run.state = "running";
  grown();
  try {
    for await (const event of events("generate", body, signal)) {
      for (const choice of event.choices) {
        if (choice.token_ids.length) run.tokens.push(...tokensOf(choice));
        else if (choice.text && run.tokens.length) run.tokens.at(-1).text += choice.text;
        run.finish = choice.finish_reason ?? run.finish;
        run.record = choice.guidance ?? run.record;
      }
      grown();
    }
    run.state = "done";
  } catch (error) {
    run.error = error;
    if (signal.aborted) run.state = "stopped";
    else run.state = error instanceof Interrupted ? "interrupted" : "refused";
  }
  grown();
}

/** The guided answer and its branches. */
export class Tree {
  /** @param {Settings} set with which all of it is generated */
  constructor(set) {
    this.set = set;
    /** @type {Run[]} */
    this.runs = [created()];
    this.shown = 0;
  }

  /** @returns {Run} */
  get current() {
    return this.runs[this.shown];
  }

  /**
   * Add a branch.
   * @param {number} parent
   * @param {number} at position of the token that another one replaces
   * @param {number} id of the other one
   * @returns {number | null} its number; null if that token was not listed there
   */
  branch(parent, at, id) {
    const { tokens } = this.runs[parent];
    const step = tokens[at]?.step;
    const candidate = step?.candidates?.indexOf(id) ?? -1;
    const other = step?.tail?.indexOf(id) ?? -1;
    const text = step?.texts?.[candidate] ?? step?.tail_texts?.[other];
    if (text === undefined) return null;
    const known = this.runs.findIndex(
      (run) => run.parent === parent && run.at === at && run.tokens[at].id === id,
    );
    if (known >= 0) return known;
    const chosen = { id, text, step, chosen: true };
    return this.runs.push(created([...tokens.slice(0, at), chosen], parent)) - 1;
  }

  /** The branches as an address holds them. */
  get branches() {
    return this.runs.slice(1).map(({ parent, at, tokens }) => {
      return { parent, at, token: tokens[at].id };
    });
  }
}
