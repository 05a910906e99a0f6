// The page: locked until a key is typed, and locked again when that is not accepted any more.

import { copyOf, fill, partsOf } from "./elements.js";
import { openKey } from "./key.js";
import { FIRST_PAGE, openOverview } from "./overview.js";
import { Failure, KeyRefused, Session } from "./service.js";

const AGAIN = 30_000; // milliseconds until the service is asked whether it still accepts the key

const { lock: lockButton, message, main } = partsOf(document);

let session; // none while the page is locked
let place; // where its user is in the list of keys

function lock(reason) {
  session?.end();
  session = place = undefined;
  lockButton.hidden = true;
  const { key } = fill(main, "locked");
  main.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = key.value.trim();
    key.value = "";
    unlock(typed);
  });
  say(reason);
  key.focus();
}

async function unlock(key) {
  if (!/^[!-~]+$/.test(key)) return say("No key looks like this.", "problem");
  const asked = (session = new Session(key));
  say("Asking the service…");
  const accepted = await run(() => asked.read("", { limit: 1 }));
  if (session !== asked) return;
  if (!accepted) return session.end();
  place = { search: "", after: FIRST_PAGE };
  lockButton.hidden = false;
  say("");
  show();
}

/** The view that the address names: of one key, or of all. */
function show() {
  if (!place) return;
  say("");
  const id = location.hash.slice(1);
  const parts = fill(main, id ? "key-page" : "overview");
  const desk = { session, place, run, say, open };
  (id ? openKey(desk, parts, id) : openOverview(desk, parts)).focus();
  scrollTo(0, 0);
}

/** Do it; whatever is in the way is said. Gives whether nothing was. */
async function run(work, sayIt = say) {
  const asked = session;
  try {
    await work();
    return session === asked;
  } catch (error) {
    if (session !== asked || error.name === "AbortError") return false;
    if (error instanceof KeyRefused) lock(`Locked: ${error.message}. The key is forgotten.`);
    else if (error instanceof Failure) sayIt(error.message, "problem");
    else throw error;
    return false;
  }
}

function say(text, look = "") {
  message.textContent = text;
  message.className = look;
}

/** A dialog from a template; it is gone when it is closed. */
function open(template) {
  main.append(copyOf(template));
  const dialog = main.lastElementChild;
  const isBusy = () => dialog.ariaBusy === "true"; // with a change that is being made
  dialog.addEventListener("cancel", (event) => isBusy() && event.preventDefault());
  dialog.querySelector(".cancel").addEventListener("click", () => isBusy() || dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  dialog.showModal();
  return { dialog, ...partsOf(dialog) };
}

lockButton.addEventListener("click", () => lock("Locked. The key is forgotten."));
addEventListener("hashchange", show);
addEventListener("pagehide", () => lock("")); // or a browser could keep it for the way back
setInterval(() => place && run(() => session.read("", { limit: 1 }), () => {}), AGAIN);
lock("");
