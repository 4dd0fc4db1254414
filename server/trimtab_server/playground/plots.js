/** Drawings: the course of an answer, and a sweep of β. */

import { drawn, number } from "./dom.js";

/** @typedef {{name: string, colour: string, values: (number | null)[]}} Line */
/** @typedef {{kl: number, reward: number, klError: number, rewardError: number, beta: number}} Point */

const GAP = 4;
const MOST_POINTS = 400; // of a line
const LETTER = 6.4; // width of a letter of a label

/**
 * Round values that divide a range.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 */
export function ticks(low, high, count) {
  const raw = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= raw) * size;
  const first = Math.ceil(low / step - 1e-9) * step;
  const values = [];
  for (let value = first; value <= high + step * 1e-6; value += step) values.push(value);
  return { values, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/**
 * @param {number} low
 * @param {number} high
 * @param {number} from pixel of `low`
 * @param {number} to pixel of `high`
 */
const scale = (low, high, from, to) => (/** @type {number} */ value) =>
  from + ((value - low) / (high - low || 1)) * (to - from);

/** @param {number[]} values */
const range = (values) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) * 0.08 || 0.5;
  return [low - room, high + room];
};

/**
 * A drawing as wide as its box.
 * @param {HTMLElement} box
 * @param {number} height
 * @param {string} label what it shows, for those who do not see it
 * @param {(width: number) => Node[]} content
 */
function draw(box, height, label, content) {
  const width = Math.max(Math.floor(box.clientWidth), 240);
  const size = { viewBox: `0 0 ${width} ${height}`, width, height };
  box.replaceChildren(drawn("svg", { ...size, role: "img", "aria-label": label }, content(width)));
}

/** Horizontal lines with their values. */
function grid(low, high, y, left, right, count = 3) {
  const { values, digits } = ticks(low, high, count);
  return values.flatMap((value) => [
    drawn("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
    drawn("text", {
      class: "tick",
      x: left - 6,
      y: y(value) + 3.5,
      "text-anchor": "end",
      text: number(value, digits),
    }),
  ]);
}

/** Labels at the ends of lines, moved apart. */
function ends(labels, x, bottom) {
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => {
    if (i > 0) label.y = Math.max(label.y, labels[i - 1].y + 14);
  });
  let most = bottom;
  for (const label of labels.toReversed()) {
    label.y = Math.min(label.y, most);
    most = label.y - 14;
  }
  return labels.map(({ name, colour, y }) =>
    drawn("text", { class: `end ${colour}`, x, y: y + 4, text: name }),
  );
}

/**
 * The path of a line.
 * @param {(number | null)[]} values
 * @param {(value: number) => number} x
 * @param {(value: number) => number} y
 */
function path(values, x, y) {
  let pen = "M";
  const every = Math.ceil(values.length / MOST_POINTS);
  return values
    .map((value, i) => {
      if (value === null || (i % every && i + 1 < values.length)) return "";
      const point = `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
      return point;
    })
    .join("");
}

/**
 * The divergence that was spent, and each scorer's score, along an answer.
 * @param {HTMLElement} box
 * @param {number[]} spent nats up to each token
 * @param {Line[]} lines
 */
export function drawCourse(box, spent, lines) {
  const shown = lines.filter((line) => line.values.some((value) => value !== null));
  const names = ["KL, nats", ...shown.map((line) => line.name)];
  const margin = 12 + LETTER * Math.max(...names.map((name) => name.length));
  const height = shown.length ? 224 : 112;
  const total = spent.at(-1) ?? 0;
  const label = `KL rises to ${number(total)} nats over ${spent.length} tokens. ${shown
    .map((line) => `${line.name} ends at ${number(line.values.findLast((v) => v !== null))}.`)
    .join(" ")}`;
  draw(box, height, label, (width) => {
    const [left, right] = [38, width - margin];
    const x = scale(0, Math.max(spent.length - 1, 1), left, right);
    const high = Math.max(total * 1.08, 0.1);
    const y = scale(0, high, 92, 10);
    const line = path(spent, x, y);
    const parts = [
      ...grid(0, high, y, left, right),
      drawn("path", { class: "area", d: `${line}L${x(spent.length - 1)} 92L${left} 92Z` }),
      drawn("path", { class: "line kl", d: line }),
      ...ends([{ name: "KL, nats", colour: "kl", y: y(total) }], right + GAP + 2, 96),
    ];
    if (shown.length) {
      const known = shown.flatMap((one) => one.values.filter((value) => value !== null));
      const [low, top] = range(known);
      const place = scale(low, top, 204, 116);
      parts.push(
        ...grid(low, top, place, left, right),
        ...shown.map((one) =>
          drawn("path", { class: `line ${one.colour}`, d: path(one.values, x, place) }),
        ),
        ...ends(
          shown.map((one) => ({
            name: one.name,
            colour: one.colour,
            y: place(one.values.findLast((value) => value !== null)),
          })),
          right + GAP + 2,
          206,
        ),
      );
    }
    parts.push(
      drawn("text", { class: "tick", x: left, y: height - 2, text: "token 1" }),
      drawn("text", {
        class: "tick",
        x: right,
        y: height - 2,
        "text-anchor": "end",
        text: `${spent.length}`,
      }),
    );
    return parts;
  });
}

/**
 * Reward against divergence at several β, and where one answer lies.
 * @param {HTMLElement} box
 * @param {Point[]} points means of several answers each, with their standard errors
 * @param {{kl: number, reward: number} | null} here
 */
export function drawSweep(box, points, here) {
  const label = `Reward against KL. ${points
    .map((p) => `β ${number(p.beta, 1)}: reward ${number(p.reward)} at ${number(p.kl)} nats.`)
    .join(" ")} ${here ? `This answer: ${number(here.reward)} at ${number(here.kl)} nats.` : ""}`;
  draw(box, 236, label, (width) => {
    const all = here ? [...points, { ...here, klError: 0, rewardError: 0 }] : points;
    const [left, right, top, bottom] = [44, width - 34, 14, 196];
    const high = Math.max(...all.map((p) => p.kl + p.klError), 0.1) * 1.06;
    const [low, most] = range(
      all.flatMap((p) => [p.reward - p.rewardError, p.reward + p.rewardError]),
    );
    const [x, y] = [scale(0, high, left, right), scale(low, most, bottom, top)];
    const across = ticks(0, high, 4);
    return [
      ...grid(low, most, y, left, right, 4),
      ...across.values.map((value) =>
        drawn("text", {
          class: "tick",
          x: x(value),
          y: bottom + 16,
          "text-anchor": "middle",
          text: number(value, across.digits),
        }),
      ),
      drawn("text", {
        class: "tick",
        x: (left + right) / 2,
        y: bottom + 34,
        "text-anchor": "middle",
        text: "KL to the base, nats",
      }),
      drawn("path", { class: "line sweep", d: path(points.map((p) => p.reward), (i) => x(points[i].kl), y) }),
      ...points.flatMap((p) => [
        drawn("line", {
          class: "error-bar",
          x1: x(p.kl),
          x2: x(p.kl),
          y1: y(p.reward - p.rewardError),
          y2: y(p.reward + p.rewardError),
        }),
        drawn("line", {
          class: "error-bar",
          x1: x(Math.max(p.kl - p.klError, 0)),
          x2: x(p.kl + p.klError),
          y1: y(p.reward),
          y2: y(p.reward),
        }),
        drawn("circle", { class: "point", cx: x(p.kl), cy: y(p.reward), r: 3.5 }),
      ]),
      ...(here ? [drawn("path", { class: "here", d: diamond(x(here.kl), y(here.reward)) })] : []),
      ...labels(
        [
          ...(here ? [{ x: x(here.kl), y: y(here.reward), text: "this answer", here: true }] : []),
          ...points.map((p) => ({
            x: x(p.kl),
            y: y(p.reward),
            text: p.beta === 0 ? "base" : `β ${number(p.beta, p.beta % 1 ? 1 : 0)}`,
            here: false,
          })),
        ],
        width,
      ),
    ];
  });
}

/** @param {number} x @param {number} y */
const diamond = (x, y) => `M${x} ${y - 7}l7 7l-7 7l-7-7z`;

/**
 * Labels of points, each at the first place beside its point where it covers no other label.
 * @param {{x: number, y: number, text: string, here: boolean}[]} marks
 * @param {number} width
 */
function labels(marks, width) {
  /** @type {{left: number, top: number, right: number}[]} */
  const taken = [];
  return marks.map(({ x, y, text, here }) => {
    const wide = LETTER * text.length + (here ? 6 : 0);
    const places = [14, -7, 28, -21, 42, -35].flatMap((down) => [
      { left: x + 8, top: y + down },
      { left: x - 8 - wide, top: y + down },
    ]);
    const inside = places.filter(({ left, top }) => left > 0 && left + wide < width && top > 8);
    const free = inside.find(({ left, top }) =>
      taken.every(
        (box) => Math.abs(box.top - top) > 12 || left > box.right || left + wide < box.left,
      ),
    );
    const { left, top } = free ?? inside[0];
    taken.push({ left, top, right: left + wide });
    return drawn("text", { class: here ? "end here-label" : "tick", x: left, y: top, text });
  });
}
