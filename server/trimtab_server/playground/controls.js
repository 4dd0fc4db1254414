/** The form: sliders for the scorers, the strength, and where errors are shown. */

import { by, element, signed } from "./dom.js";
import { CHOICES, NUMBERS } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */

const PALETTE = 8;
const FIELDS = [...NUMBERS, ...CHOICES, "prompt", "scorers", "general", "key"];
const BLAMED = { messages: "prompt", prompt_token_ids: "prompt", answer_token_ids: "general" };

/**
 * Sliders for the server's scorers, each signed, from −2 to 2.
 * @param {any[]} scorers as GET /v1/scorers lists them
 * @param {Record<string, number>} weights
 */
export function showScorers(scorers, weights) {
  const rows = scorers.map((scorer, i) => {
    const { id } = scorer;
    const input = element("input", {
      type: "range",
      id: `weight-${i}`,
      min: -2,
      max: 2,
      step: 0.1,
      "data-scorer": id,
      "aria-describedby": "error-scorers",
    });
    input.value = String(weights[id] ?? 0);
    const shown = element("output", { for: input.id });
    const facts = [scorer.family, scorer.healthy ? "" : "not healthy"].filter(Boolean).join(", ");
    const update = () => {
      const weight = Number(input.value);
      shown.textContent = signed(weight).replace(/0$/, "");
      input.style.setProperty("--from", String(Math.min(50, 50 + 25 * weight)));
      input.style.setProperty("--to", String(Math.max(50, 50 + 25 * weight)));
    };
    input.addEventListener("input", update);
    input.addEventListener("dblclick", () => {
      input.value = "0";
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
    update();
    return element("div", { class: `scorer own-${i % PALETTE}` }, [
      element("label", { for: input.id, text: id }),
      element("span", { class: "family", text: facts }),
      shown,
      input,
    ]);
  });
  const none = element("p", { class: "note", text: "This server has no scorers." });
  by("scorers").replaceChildren(...(rows.length ? rows : [none]));
}

/**
 * Put settings into the form.
 * @param {Settings} set
 */
export function fill(set) {
  const form = by("controls");
  form.elements.prompt.value = set.prompt;
  for (const name of [...NUMBERS, ...CHOICES]) form.elements[name].value = String(set[name]);
  form.elements.strength.value = set.strength;
  for (const name of ["beta", "kl_budget"]) by(`${name}-range`).value = String(set[name]);
  showStrength();
}

/**
 * What the form says. A number that is not one is NaN, and the server refuses it.
 * @returns {Settings}
 */
export function readForm() {
  const form = by("controls");
  const inputs = [...document.querySelectorAll("[data-scorer]")];
  return /** @type {Settings} */ ({
    prompt: form.elements.prompt.value,
    strength: form.elements.strength.value,
    scorers: Object.fromEntries(inputs.map((one) => [one.dataset.scorer, Number(one.value)])),
    ...Object.fromEntries(CHOICES.map((name) => [name, form.elements[name].value])),
    ...Object.fromEntries(NUMBERS.map((name) => [name, form.elements[name].valueAsNumber])),
  });
}

/** Show the dial of the strength that is chosen. */
export function showStrength() {
  const chosen = by("controls").elements.strength.value;
  for (const name of ["beta", "kl_budget"]) by(`dial-${name}`).hidden = name !== chosen;
}

/** Let each dial's slider and number follow each other. */
export function linkDials() {
  for (const name of ["beta", "kl_budget"]) {
    const [slider, field] = [by(`${name}-range`), by(name)];
    slider.addEventListener("input", () => (field.value = slider.value));
    field.addEventListener("input", () => (slider.value = field.value));
  }
}

/** Take back all errors. */
export function clearErrors() {
  for (const name of FIELDS) {
    const place = by(`error-${name}`);
    if (place) place.textContent = "";
    by(name)?.removeAttribute("aria-invalid");
  }
}

/**
 * Show a message beside the field that it is about.
 * @param {string | null} param
 * @param {string} message
 */
export function showError(param, message) {
  const name = BLAMED[param] ?? param;
  const field = FIELDS.includes(name) && by(`error-${name}`) ? name : "general";
  by(`error-${field}`).textContent = message;
  const input = by(field);
  if (!input) return;
  input.closest("details")?.setAttribute("open", "");
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

/**
 * The class of a scorer's colour.
 * @param {string} name
 */
export function colourOf(name) {
  const names = [...document.querySelectorAll("[data-scorer]")].map((one) => one.dataset.scorer);
  const index = names.indexOf(name);
  return index < 0 ? "" : `own-${index % PALETTE}`;
}
