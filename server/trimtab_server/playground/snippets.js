/** The request of an answer, to run elsewhere. A key is named, never shown. */

const VARIABLE = "TRIMTAB_API_KEY";

/** @param {string} text for a POSIX shell */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * @param {string} url
 * @param {object} body
 * @param {boolean} key whether the server needs one
 */
export function curl(url, body, key) {
  return [
    `curl -s ${quoted(url)}`,
    "  -H 'Content-Type: application/json'",
    ...(key ? [`  -H "Authorization: Bearer $${VARIABLE}"`] : []),
    `  -d ${quoted(lines(body, JSON.stringify, "  "))}`,
  ].join(" \\\n");
}

/**
 * JSON as a literal of Python.
 * @param {any} value
 * @returns {string}
 */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  return typeof value === "object" ? object(value, literal) : JSON.stringify(value);
}

/**
 * @param {object} value
 * @param {(value: any) => string} write its values
 */
function object(value, write) {
  const entries = Object.entries(value);
  return `{${entries.map(([name, one]) => `${JSON.stringify(name)}: ${write(one)}`).join(", ")}}`;
}

/**
 * An object with a field a line.
 * @param {object} value
 * @param {(value: any) => string} write its values
 * @param {string} indent
 */
function lines(value, write, indent) {
  const fields = Object.entries(value).map(
    ([name, one]) => `${indent}    ${JSON.stringify(name)}: ${write(one)}`,
  );
  return `{\n${fields.join(",\n")}\n${indent}}`;
}

/**
 * @param {string} url
 * @param {object} body
 * @param {boolean} key whether the server needs one
 */
export function python(url, body, key) {
  const header = `headers={"Authorization": f"Bearer {os.environ['${VARIABLE}']}"},`;
  return [
    ...(key ? ["import os", ""] : []),
    "import httpx",
    "",
    "answer = httpx.post(",
    `    ${JSON.stringify(url)},`,
    `    json=${lines(body, literal, "    ")},`,
    ...(key ? [`    ${header}`] : []),
    "    timeout=120,",
    ")",
    "answer.raise_for_status()",
    '[choice] = answer.json()["choices"]',
    'print(choice["text"])',
    'print(choice["guidance"])',
  ].join("\n");
}
