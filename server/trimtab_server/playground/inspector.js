/** The table of a step: its candidates before and after, what was cut, each scorer's part. */

import { by, element, number, percent, signed, visible } from "./dom.js";
import { table } from "./steps.js";

const LISTED = 3; // tokens of the tail that are always listed
const RARE = 0.001; // others only if they are more likely

/** @typedef {import("./steps.js").Token} Token */
/** @typedef {import("./steps.js").Row} Row */

/**
 * Show a step.
 * @param {Token[]} tokens of the answer
 * @param {number} index
 * @param {import("./settings.js").Settings} set
 * @param {(name: string) => string} colour the class of a scorer's colour
 * @param {(id: number) => void} choose continue from another token
 */
export function inspect(tokens, index, set, colour, choose) {
  const token = tokens[index];
  by("inspector").hidden = false;
  by("title-step").replaceChildren(
    `Step ${index + 1} `,
    element("code", { class: "token", text: visible(token.text) }),
  );
  const box = by("candidates");
  if (!token.step?.candidates) {
    by("step-facts").textContent = "";
    const why = "Nothing is recorded of this step: its trace was too large, or it was not guided.";
    box.replaceChildren(element("p", { class: "note", text: why }));
    return;
  }
  const { rows: all, tail, names, strength } = table(token.step, set.scorers, set.beta);
  const scored = all.filter((row) => row.scored).length;
  const rows = all.filter((row, i) => i < scored + LISTED || row.before > RARE);
  const facts = [`KL ${number(token.step.kl, 3)} nats`];
  if (token.step.beta !== undefined) facts.push(`β ${number(strength)}`);
  facts.push(scored > 1 ? `${scored} candidates` : "certain: a single candidate");
  by("step-facts").textContent = facts.join(" · ");
  const head = ["Token", "Base", "Guided", ...names];
  const most = Math.max(...rows.flatMap((row) => [row.before, row.after]));
  const widest = Math.max(...rows.flatMap((row) => Object.values(row.parts).map(Math.abs)), 0.01);
  const body = rows.map((row) => line(row, row.token === token.id, { names, most, widest }));
  const others = rows.filter((row) => !row.scored).reduce((sum, row) => sum + row.before, 0);
  if (tail.before - others > 1e-4) body.push(remainder(tail, others, names.length));
  box.replaceChildren(
    element("table", {}, [
      element("caption", { class: "visually-hidden", text: `Candidates of step ${index + 1}` }),
      element("thead", {}, [
        element(
          "tr",
          {},
          head.map((text, i) =>
            element("th", { scope: "col", class: i > 2 ? colour(text) : undefined, text }),
          ),
        ),
      ]),
      element("tbody", {}, body),
    ]),
  );

  /**
   * @param {Row} row
   * @param {boolean} taken
   * @param {{names: string[], most: number, widest: number}} scale
   */
  function line(row, taken, scale) {
    const name = visible(row.text);
    const button = element("button", {
      type: "button",
      class: "token",
      text: name,
      disabled: taken,
      "aria-label": taken ? `${name}, taken` : `Continue from ${name}`,
    });
    button.addEventListener("click", () => choose(row.token));
    const mark = taken ? "taken" : row.scored ? "" : row.after > 0 ? "tail" : "cut";
    return element("tr", { class: mark || undefined }, [
      element("th", { scope: "row" }, [button, element("span", { class: "kind", text: mark })]),
      share(row.before, scale.most, "before"),
      share(row.after, scale.most, "after"),
      ...scale.names.map((scorer) => part(row.parts[scorer], scale.widest, colour(scorer))),
    ]);
  }
}

/**
 * @param {number} p
 * @param {number} most
 * @param {string} kind
 */
function share(p, most, kind) {
  const bar = element("i", { class: `bar ${kind}`, "aria-hidden": "true" });
  bar.style.setProperty("--share", (p / most).toFixed(3));
  return element("td", { class: "share" }, [element("span", { text: percent(p) }), bar]);
}

/**
 * @param {number | undefined} value in nats
 * @param {number} widest
 * @param {string} colour
 */
function part(value, widest, colour) {
  if (value === undefined) return element("td", { class: "part" });
  const bar = element("i", {
    class: `bar ${value < 0 ? "less" : "more"} ${colour}`,
    "aria-hidden": "true",
  });
  bar.style.setProperty("--share", (Math.abs(value) / widest).toFixed(3));
  return element("td", { class: "part" }, [element("span", { text: signed(value) }), bar]);
}

/**
 * All tokens that are not listed.
 * @param {{before: number, after: number}} tail
 * @param {number} listed probability of those of the tail that are
 * @param {number} columns of scorers
 */
function remainder(tail, listed, columns) {
  const ratio = tail.after / tail.before;
  const left = tail.before - listed;
  return element("tr", { class: "tail" }, [
    element("th", { scope: "row" }, [
      element("span", { text: "all others" }),
      element("span", { class: "kind", text: ratio > 0 ? "tail" : "cut" }),
    ]),
    element("td", { class: "share" }, [element("span", { text: percent(left) })]),
    element("td", { class: "share" }, [element("span", { text: percent(left * ratio) })]),
    ...Array.from({ length: columns }, () => element("td")),
  ]);
}
