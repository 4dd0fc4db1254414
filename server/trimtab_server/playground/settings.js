/** What is set on the page: its defaults, the requests that it makes, the address that holds it. */

/**
 * @typedef {object} Settings
 * @property {string} prompt
 * @property {"messages" | "prompt"} send_as
 * @property {Record<string, number>} scorers weight by scorer
 * @property {"beta" | "kl_budget"} strength
 * @property {number} beta
 * @property {number} kl_budget nats
 * @property {number} seed
 * @property {number} max_tokens
 * @property {number} temperature
 * @property {number} k
 * @property {number} mass
 * @property {"mean" | "truncate"} tail
 */

/**
 * A branch: the answer `parent`, continued at position `at` with another token.
 * @typedef {{parent: number, at: number, token: number}} Branch
 */

/** @type {Settings} */
export const DEFAULTS = Object.freeze({
  prompt: "Write a review of the cafe.",
  send_as: "messages",
  scorers: {},
  strength: "beta",
  beta: 3,
  kl_budget: 2,
  seed: 3,
  max_tokens: 80,
  temperature: 1,
  k: 16,
  mass: 0.98,
  tail: "mean",
});

export const NUMBERS = ["beta", "kl_budget", "seed", "max_tokens", "temperature", "k", "mass"];
export const CHOICES = ["send_as", "tail"];
const MOST = 8; // scorers of one request
const WEIGHT = "w.";

/**
 * The scorers of a request: also those of weight 0, whose rewards the record then has.
 * @param {Record<string, number>} weights
 */
function named(weights) {
  const all = Object.entries(weights);
  const steering = all.filter(([, weight]) => weight !== 0);
  return Object.fromEntries([...steering, ...all.filter(([, w]) => w === 0)].slice(0, MOST));
}

/**
 * The body of POST /generate.
 * @param {Settings} set
 * @param {number[]} [answer] tokens of the answer that it continues
 */
export function guided(set, answer = []) {
  const scorers = named(set.scorers);
  return {
    ...(set.send_as === "prompt"
      ? { prompt: set.prompt }
      : { messages: [{ role: "user", content: set.prompt }] }),
    ...(answer.length ? { answer_token_ids: answer } : {}),
    ...(Object.keys(scorers).length ? { scorers } : {}),
    [set.strength]: set[set.strength],
    max_tokens: Math.max(set.max_tokens - answer.length, 1),
    seed: set.seed,
    temperature: set.temperature,
    k: set.k,
    mass: set.mass,
    tail: set.tail,
  };
}

/**
 * The same at another strength: 0 is the base.
 * @param {Settings} set
 * @param {number} beta
 */
export function at(set, beta) {
  return guided({ ...set, strength: "beta", beta });
}

/**
 * The part of an address after #, which restores the page.
 * @param {Settings} set
 * @param {{branches: Branch[], shown: number} | null} tree null if nothing was generated
 */
export function written(set, tree) {
  const query = new URLSearchParams({ prompt: set.prompt });
  for (const [name, weight] of Object.entries(set.scorers)) query.set(WEIGHT + name, `${weight}`);
  query.set(set.strength, `${set[set.strength]}`);
  for (const name of [...NUMBERS, ...CHOICES]) {
    const strength = name === "beta" || name === "kl_budget";
    if (!strength) query.set(name, `${set[name]}`);
  }
  if (tree) {
    query.set("shown", `${tree.shown}`);
    for (const { parent, at: position, token } of tree.branches) {
      query.append("branch", `${parent}.${position}.${token}`);
    }
  }
  return query.toString();
}

/**
 * The reverse of `written`. What is not valid is left out.
 * @param {string} fragment
 * @returns {{set: Settings, tree: {branches: Branch[], shown: number} | null}}
 */
export function read(fragment) {
  const query = new URLSearchParams(fragment.replace(/^#/, ""));
  const set = { ...DEFAULTS, scorers: {} };
  set.prompt = query.get("prompt") ?? set.prompt;
  for (const name of NUMBERS) {
    const value = Number(query.get(name) ?? NaN);
    if (Number.isFinite(value)) set[name] = value;
  }
  for (const [name, allowed] of [
    ["send_as", ["messages", "prompt"]],
    ["tail", ["mean", "truncate"]],
  ]) {
    if (allowed.includes(query.get(name))) set[name] = query.get(name);
  }
  if (query.has("kl_budget")) set.strength = "kl_budget";
  for (const [name, value] of query) {
    if (name.startsWith(WEIGHT) && Number.isFinite(Number(value))) {
      set.scorers[name.slice(WEIGHT.length)] = Number(value);
    }
  }
  const branches = query.getAll("branch").map((text) => text.split(".").map(Number));
  const valid = branches.filter(
    ([parent, position, token], index) =>
      [parent, position, token].every((value) => Number.isInteger(value) && value >= 0) &&
      parent <= index,
  );
  if (!query.has("shown")) return { set, tree: null };
  const shown = Number(query.get("shown"));
  return {
    set,
    tree: {
      branches: valid.map(([parent, position, token]) => ({ parent, at: position, token })),
      shown: Number.isInteger(shown) && shown >= 0 && shown <= valid.length ? shown : 0,
    },
  };
}
