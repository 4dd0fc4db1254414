/** What a step of a trace says: probabilities before and after, and each scorer's part. */

/**
 * One step, as POST /generate streams it.
 * @typedef {object} Step
 * @property {number} position
 * @property {number} token
 * @property {number} kl nats
 * @property {number[]} [candidates]
 * @property {number[]} [logprobs]
 * @property {number[]} [guided_logprobs]
 * @property {Record<string, number[]>} [scores]
 * @property {string[]} [texts]
 * @property {number[]} [tail]
 * @property {number[]} [tail_logprobs]
 * @property {string[]} [tail_texts]
 * @property {number} [beta] with a KL budget
 */

/**
 * A token of an answer.
 * @typedef {object} Token
 * @property {number} id
 * @property {string} text
 * @property {Step | null} step
 * @property {boolean} [chosen] whether a person chose it, and a branch begins with it
 */

/**
 * A row of the table of candidates.
 * @typedef {object} Row
 * @property {number} token
 * @property {string} text
 * @property {number} before probability in the base
 * @property {number} after probability with guidance
 * @property {boolean} scored whether it is a candidate; else it is of the tail
 * @property {Record<string, number>} parts what each scorer adds to its logit, less the mean
 */

const ROUNDING = 1e-6;
const NONE = 1e-9;

/** @param {number[]} logprobs */
const rest = (logprobs) => {
  const left = 1 - logprobs.reduce((sum, logprob) => sum + Math.exp(logprob), 0);
  return left > ROUNDING ? left : 0;
};

/** @param {number[]} values */
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * The table of a step.
 * @param {Step} step
 * @param {Record<string, number>} weights
 * @param {number} beta of the request, if the step has none of its own
 */
export function table(step, weights, beta) {
  const { candidates = [], logprobs = [], guided_logprobs: after = [], scores = {} } = step;
  const strength = step.beta ?? beta;
  const names = Object.keys(scores);
  const means = Object.fromEntries(names.map((name) => [name, mean(scores[name])]));
  /** @type {Row[]} */
  const rows = candidates.map((token, i) => ({
    token,
    text: step.texts?.[i] ?? "",
    before: Math.exp(logprobs[i]),
    after: Math.exp(after[i]),
    scored: true,
    parts: Object.fromEntries(
      names.map((name) => [
        name,
        strength * (weights[name] ?? 0) * (scores[name][i] - means[name]),
      ]),
    ),
  }));
  const tail = { before: rest(logprobs), after: rest(after) };
  const ratio = tail.before > NONE ? tail.after / tail.before : 0;
  (step.tail ?? []).forEach((token, i) => {
    const before = Math.exp(step.tail_logprobs[i]);
    rows.push({
      token,
      text: step.tail_texts?.[i] ?? "",
      before,
      after: before * ratio,
      scored: false,
      parts: {},
    });
  });
  return { rows, tail, names, strength };
}

/**
 * A scorer's score after a token; null where nothing was scored.
 * @param {Token} token
 * @param {string} name
 * @returns {number | null}
 */
export function score(token, name) {
  const place = token.step?.candidates?.indexOf(token.id) ?? -1;
  return token.step?.scores?.[name]?.[place] ?? null;
}

/**
 * A scorer's score along an answer; it keeps its last value where nothing was scored.
 * @param {Token[]} tokens
 * @param {string} name
 * @returns {(number | null)[]}
 */
export function course(tokens, name) {
  let last = null;
  return tokens.map((token) => (last = score(token, name) ?? last));
}

/**
 * The scores after the last token that was scored.
 * @param {Token[]} tokens
 * @returns {Record<string, number>}
 */
export function latest(tokens) {
  const token = tokens.findLast(({ step }) => Object.keys(step?.scores ?? {}).length);
  const names = Object.keys(token?.step?.scores ?? {});
  const pairs = names.map((name) => [name, score(token, name)]);
  return Object.fromEntries(pairs.filter(([, value]) => value !== null));
}

/**
 * What the base expects of a scorer's score at a step; null where nothing was scored.
 * @param {Token} token
 * @param {string} name
 */
export function expected(token, name) {
  const scores = token.step?.scores?.[name];
  if (!scores?.length) return null;
  const weights = token.step.logprobs.map(Math.exp);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return scores.reduce((sum, value, i) => sum + value * weights[i], 0) / total;
}

/**
 * The divergence spent up to each token, in nats.
 * @param {Token[]} tokens
 */
export function spent(tokens) {
  let sum = 0;
  return tokens.map((token) => (sum += token.step?.kl ?? 0));
}
