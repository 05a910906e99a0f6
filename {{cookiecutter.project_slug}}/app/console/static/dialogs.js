// What changes keys, each in a dialog, and the secret that is shown once.

import { ago } from "./elements.js";

const SOON = "One moment…";
const UNTIL_ALL_FOLLOW = "Waiting until every server follows…";

export function makeKey(desk) {
  const parts = desk.open("make-dialog");
  const make = () => desk.session.change("", typed(parts));
  onSubmit(desk, parts, () => SOON, make, (issued) =>
    showSecret(desk, issued, () => (location.hash = issued.id)),
  );
}

/** Send what was typed in another way than it was before. */
export function changeKey(desk, key, done) {
  const parts = desk.open("make-dialog");
  parts["dialog-title"].textContent = `Change “${key.name}”`;
  parts.now.textContent = "Change it";
  for (const name of ["name", "owner", "note"]) parts[`new-${name}`].value = key[name];
  const lists = ["scopes"];
  lists.push("limits", "networks"); // part: limits
  for (const name of lists) parts[`new-${name}`].value = key[name].join(" ");
  if (key.expires_at) {
    const end = new Date(key.expires_at);
    const local = new Date(end - 60_000 * end.getTimezoneOffset());
    parts["new-end"].value = local.toISOString().slice(0, 16);
  }
  const before = typed(parts);
  const change = (force) => {
    const differ = ([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name]);
    const patch = Object.fromEntries(Object.entries(typed(parts)).filter(differ));
    return desk.session.change(`/${key.id}?force=${force}`, patch, "PATCH");
  };
  onSubmit(desk, parts, () => UNTIL_ALL_FOLLOW, withForce(parts, change), done);
}

function typed(parts) {
  const words = (name) => parts[name].value.split(/[\s,]+/).filter(Boolean);
  const end = parts["new-end"].value;
  return {
    name: parts["new-name"].value,
    owner: parts["new-owner"].value || null,
    note: parts["new-note"].value || null,
    scopes: words("new-scopes"),
    limits: words("new-limits"), // part: limits
    networks: words("new-networks"), // part: limits
    expires_at: end ? new Date(end).toISOString() : null,
  };
}

export function rotateKey(desk, key, done) {
  const parts = desk.open("rotate-dialog");
  parts["dialog-title"].textContent = `Rotate “${key.name}”`;
  askWhichToDrop(parts, key);
  const noNew = parts["no-new"];
  noNew.addEventListener("change", () => (parts["overlap-row"].hidden = noNew.checked));

  const rotation = () => {
    const drop = parts.dialog.querySelector("[name=drop]:checked")?.value;
    if (drop && noNew.checked) return { drop, issue: false };
    return { overlap: parts.overlap.value, ...(drop && { drop }) };
  };
  const waiting = () => {
    const { drop, overlap } = rotation();
    return drop || overlap === "PT0S" ? UNTIL_ALL_FOLLOW : SOON;
  };
  const rotate = async () => {
    try {
      return await desk.session.change(`/${key.id}/rotate`, rotation());
    } catch (error) {
      // Perhaps somebody else has rotated it meanwhile.
      if (error.status === 409) askWhichToDrop(parts, await desk.session.read(`/${key.id}`));
      throw error;
    }
  };
  onSubmit(desk, parts, waiting, rotate, (rotated) => {
    if (rotated.key) showSecret(desk, rotated, done);
    else done();
  });
}

function askWhichToDrop({ two, "old-one": oldOne }, key) {
  two.hidden = two.disabled = !key.old_key_expires_at;
  if (two.hidden) return;
  oldOne.replaceChildren("The old one, last used: ", ago(key.old_key_last_used_at, "never"));
  const choices = two.querySelectorAll("[name=drop]");
  for (const choice of choices) choice.required = true;
  choices[0].focus();
}

const NOTES = {
  Pause: "No server accepts the key until you resume it.",
  Resume: "Every server accepts the key again.",
  Revoke: "No server accepts the key any more, and nothing brings it back.",
};

/** Pause, resume or revoke it. */
export function turnKey(desk, key, done, verb) {
  const parts = desk.open("turn-dialog");
  parts["dialog-title"].textContent = `${verb} “${key.name}”?`;
  parts["turn-id"].textContent = key.id;
  parts["turn-note"].textContent = NOTES[verb];
  parts.now.textContent = `${verb} ${key.name}`;
  const turn = (force) => desk.session.change(`/${key.id}/${verb.toLowerCase()}`, { force });
  onSubmit(desk, parts, () => UNTIL_ALL_FOLLOW, withForce(parts, turn), done);
}

/** Ask for a second confirmation, if no manager would be left. */
function withForce({ force, "force-row": forceRow }, change) {
  return async () => {
    try {
      return await change(force.checked);
    } catch (error) {
      if (error.status === 409) {
        forceRow.hidden = false;
        force.required = true;
      }
      throw error;
    }
  };
}

/** Make the change once; until it is made or refused, the dialog stays. */
function onSubmit(desk, { dialog, said }, waiting, change, done) {
  const say = (text, look = "") => {
    said.textContent = text;
    said.className = look;
  };
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (dialog.ariaBusy === "true") return;
    let changed;
    dialog.ariaBusy = "true";
    say(waiting());
    const isMade = await desk.run(async () => (changed = await change()), say);
    dialog.ariaBusy = "false";
    if (!isMade) return;
    dialog.close();
    dialog.remove();
    done(changed);
  });
}

function showSecret(desk, issued, done) {
  const { dialog, secret, said, copy, "dialog-title": title } = desk.open("secret-dialog");
  title.textContent = `The secret of “${issued.name}”`;
  secret.textContent = issued.key;
  copy.addEventListener("click", async () => (said.textContent = await copied(secret)));
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // not by a slip of Escape
  dialog.addEventListener("close", done);
}

async function copied(secret) {
  try {
    await navigator.clipboard.writeText(secret.textContent);
    return "Copied.";
  } catch {
    // No browser lets a page copy that came without TLS from another machine.
    getSelection().selectAllChildren(secret);
    return "Selected: copy it with Ctrl+C or ⌘C.";
  }
}
