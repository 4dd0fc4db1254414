/** The server's API: its key, its refusals, its streams. */

const KEY = "trimtab-key";
const BUSY_MS = 16; // events that arrive at once are read in tasks of about this length

/** A request that the server refused. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string | null} [param] the field that the server blames
   */
  constructor(status, message, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The stream ended before the answer did. */
export class Interrupted extends Error {}

/** The key, kept as long as this tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  /** @param {string} value */
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/**
 * @param {string} path relative to the page, so that a proxy may serve it anywhere
 * @param {object} [body] sent by POST
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>}
 */
async function request(path, body, signal) {
  const headers = new Headers();
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (body) headers.set("Content-Type", "application/json");
  const sent = { method: body ? "POST" : "GET", headers, signal, credentials: "omit" };
  let answer;
  try {
    answer = await fetch(path, { ...sent, body: body && JSON.stringify(body) });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, "The server cannot be reached.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** @param {Response} answer */
async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // A proxy's page, not the server's error.
  }
  const message = error.message ?? `The server answered ${answer.status}.`;
  return new Refusal(answer.status, sentence(message), error.param);
}

/** @param {string} text */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * The JSON of an answer.
 * @param {string} path
 * @param {object} [body]
 * @param {AbortSignal} [signal]
 */
export async function ask(path, body, signal) {
  return (await request(path, body, signal)).json();
}

/**
 * The events of a stream.
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* events(path, body, signal) {
  const answer = await request(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let begun = performance.now();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Interrupted();
      let from = Math.max(buffer.length - 1, 0); // what came before has no end of an event
      buffer += value;
      let begin = 0;
      for (let end; (end = buffer.indexOf("\n\n", from)) >= 0; from = begin) {
        const data = buffer.slice(begin, end).replace(/^data: /, "");
        begin = end + 2;
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(200, sentence(event.error.message), event.error.param);
        yield event;
        if (performance.now() - begun > BUSY_MS) {
          await new Promise((resume) => setTimeout(resume));
          begun = performance.now();
        }
      }
      buffer = buffer.slice(begin);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Refusal) throw error;
    throw new Interrupted();
  } finally {
    reader.cancel().catch(() => {});
  }
}
