/** The tree of branches, as nested lists. */

import { by, element, number, visible } from "./dom.js";
import { spent } from "./steps.js";

/**
 * @param {import("./runs.js").Tree} tree
 * @param {(number: number) => void} open show another answer
 */
export function showTree(tree, open) {
  const note = "Choose another candidate of any step: the answer continues from it, as a branch.";
  by("tree").replaceChildren(
    list(null),
    ...(tree.runs.length > 1 ? [] : [element("p", { class: "note", text: note })]),
  );

  /** @param {number | null} parent */
  function list(parent) {
    const items = tree.runs.flatMap((run, i) => (run.parent === parent ? [item(run, i)] : []));
    return element("ul", { class: "tree" }, items);
  }

  /**
   * @param {import("./runs.js").Run} run
   * @param {number} index
   */
  function item(run, index) {
    const begin = run.tokens[run.at];
    const current = index === tree.shown;
    const name =
      run.parent === null
        ? [element("span", { text: "the answer" })]
        : [
            element("span", { class: "at", text: `step ${run.at + 1} ` }),
            element("code", { class: "token", text: visible(begin.text) }),
          ];
    const kl = element("span", { class: "kl", text: `${number(spent(run.tokens).at(-1) ?? 0)} nats` });
    const button = element(
      "button",
      { type: "button", class: "quiet", "aria-current": current ? "true" : undefined },
      [...name, kl],
    );
    button.addEventListener("click", () => open(index));
    const children = tree.runs.some((other) => other.parent === index) ? [list(index)] : [];
    return element("li", {}, [button, ...children]);
  }
}
