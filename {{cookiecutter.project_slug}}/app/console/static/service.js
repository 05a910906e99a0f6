// What the service is asked under /api-keys, and what it answers.

import { later } from "./elements.js";

const HEADER = document.querySelector('meta[name="key-header"]').content;

/** The service does not accept the key, or does no longer. */
export class KeyRefused extends Error {}

/** Something else was not done; the message is for people. */
export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Has the key, which nothing outside can read. */
export class Session {
  #key;
  #end = new AbortController();

  constructor(key) {
    this.#key = key;
  }

  /** Forget the key, and what was asked with it. */
  end() {
    this.#key = "";
    this.#end.abort();
  }

  async read(path = "", query = {}) {
    const answer = await this.#ask("GET", `${path}?${new URLSearchParams(query)}`);
    if (isRefusal(answer)) throw new KeyRefused(await reasonOf(answer));
    return resultOf(answer);
  }

  async change(path, body, method = "POST") {
    const answer = await this.#ask(method, path, body);
    // Was it this change, or is it the key that may nothing any more? Then this fails as well.
    if (isRefusal(answer)) await this.read("", { limit: 1 });
    return resultOf(answer);
  }

  async #ask(method, path, body) {
    const headers = { [HEADER]: this.#key };
    if (body) headers["content-type"] = "application/json";
    const options = { method, headers, body: body && JSON.stringify(body), cache: "no-store" };
    try {
      // Relative to the page. A redirect would take the key elsewhere.
      return await fetch(`api-keys${path}`, { ...options, redirect: "error", signal: this.#end.signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The service does not answer. Try again.");
    }
  }
}

function isRefusal(answer) {
  return answer.status === 401 || answer.status === 403;
}

async function resultOf(answer) {
  if (answer.ok) return answer.json();
  const reason = await reasonOf(answer);
  if (answer.status === 429) throw new Failure(`${reason}. ${again(answer)}`, 429);
  if (answer.status === 503) throw new Failure(`The keys are out of reach. ${again(answer)}`, 503);
  throw new Failure(`${reason}.`, answer.status);
}

/** What a problem says, or each field of a body that was not accepted. */
async function reasonOf(answer) {
  const { detail } = await answer.json().catch(() => ({}));
  if (Array.isArray(detail)) return detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}`).join("; ");
  return detail ?? `${answer.status} ${answer.statusText}`;
}

function again(answer) {
  const seconds = Number(answer.headers.get("retry-after"));
  return `Try again ${seconds ? later(seconds) : "in a moment"}.`;
}
