/** A sweep of β: several answers at several strengths, for their mean reward and divergence. */

import { ask } from "./api.js";
import { at } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {import("./plots.js").Point} Point */

export const ANSWERS = 4; // at each β
const FACTORS = [0, 0.5, 1, 1.5, 2];
const UNIT = 4; // where there is no fixed β
const MOST = 100; // the largest β of a server

/**
 * The reward that an answer was steered towards: Σ wᵢ·sᵢ.
 * @param {any} record
 * @param {Settings} set
 * @returns {number}
 */
export function reward(record, set) {
  return Object.entries(record?.scores ?? {}).reduce(
    (sum, [name, score]) => sum + (set.scorers[name] ?? 0) * score,
    0,
  );
}

/**
 * The strengths of a sweep around that of the settings.
 * @param {Settings} set
 */
export function strengths(set) {
  const beta = (set.strength === "beta" && set.beta) || UNIT;
  return FACTORS.map((factor) => Math.min(Math.max(factor * beta, -MOST), MOST)).filter(
    (value, i, all) => all.indexOf(value) === i,
  );
}

/** @param {number[]} values */
function summary(values) {
  const n = values.length;
  const mean = values.reduce((sum, value) => sum + value, 0) / n;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, error: n > 1 ? Math.sqrt(squares / (n - 1) / n) : 0 };
}

/**
 * @param {Settings} set
 * @param {AbortSignal} signal
 * @param {(points: Point[]) => void} grown called after each strength
 */
export async function sweep(set, signal, grown) {
  /** @type {Point[]} */
  const points = [];
  for (const beta of strengths(set)) {
    const answer = await ask("generate", { ...at(set, beta), n: ANSWERS }, signal);
    const records = answer.choices.map((choice) => choice.guidance);
    const kl = summary(records.map((record) => record.kl));
    const gain = summary(records.map((record) => reward(record, set)));
    points.push({
      beta,
      kl: kl.mean,
      klError: kl.error,
      reward: gain.mean,
      rewardError: gain.error,
    });
    grown(points);
  }
}
