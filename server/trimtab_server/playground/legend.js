/** What the colours of the tokens mean, and which of them is chosen. */

import { by, element, number } from "./dom.js";

/** @param {string[]} names of the scorers */
export function showColours(names) {
  by("colour").replaceChildren(
    element("option", { value: "kl", text: "KL of each step" }),
    ...names.map((name) => element("option", { value: `score:${name}`, text: `change of ${name}` })),
    element("option", { value: "none", text: "none" }),
  );
}

/**
 * @param {string} colour as chosen
 * @param {number} deviation of the scorer
 */
export function showScale(colour, deviation) {
  const ends =
    colour === "kl" ? ["0", "≥ 1 nat"] : [`≤ −${number(deviation)}`, `≥ +${number(deviation)}`];
  by("scale").replaceChildren(
    ...(colour === "none"
      ? []
      : [
          element("span", { text: ends[0] }),
          element("i", { class: colour === "kl" ? "ramp" : "ramp both", "aria-hidden": "true" }),
          element("span", { text: ends[1] }),
        ]),
  );
}
