// All keys: what needs attention, a page of them or those that are searched for, and who was refused.

import { everyPeriod, sparkline } from "./charts.js";
import { makeKey } from "./dialogs.js";
import {
  ago, cell, count, countCell, element, moment, pair, reveal, row, setUsable, statusOf,
} from "./elements.js";

const AT_ONCE = 25; // keys
const DAYS = 14; // of a sparkline
export const FIRST_PAGE = [""]; // the keys that each page up to this one begins after
const PAUSE = 250; // milliseconds without a key stroke, until it is searched

/** Gives the heading that the focus belongs to. */
export function openOverview(desk, parts) {
  const turnTo = (after) => desk.run(() => showKeys(desk, parts, after));
  turnPages(desk, parts, turnTo);
  search(desk, parts, turnTo);
  parts.make.addEventListener("click", () => makeKey(desk));
  turnTo(desk.place.after);
  desk.run(() => showFindings(desk, parts));
  desk.run(() => showUsage(desk, parts));
  return parts["findings-title"];
}

async function showFindings({ session }, { findings }) {
  reveal(findings, await session.read("/findings"), findingRow, "Nothing does.", 5);
}

function findingRow({ id, name, problem, advice }) {
  return row(problem, cell(id ? linkTo(id, name) : "The service"), cell(advice, "quiet"));
}

/** The service names the key that the next page begins after; those of earlier pages are kept. */
async function showKeys({ session, place }, parts, after) {
  const asked = (place.asked = {});
  const { search } = place;
  const page = await session.read("", { search, after: after.at(-1), limit: AT_ONCE });
  if (place.asked !== asked) return; // something else was asked meanwhile
  reveal(parts.keys, page.items, keyRow, "No key has this in its name or id.", AT_ONCE);
  const { length } = page.items;
  const first = (after.length - 1) * AT_ONCE;
  parts.page.textContent = length ? `Keys ${first + 1} to ${first + length}` : "";
  Object.assign(place, { after, next: page.next });
  setUsable(parts.previous, after.length > 1);
  setUsable(parts.next, page.next !== null);
  if (length) await showDays(session, page.items, [...parts.keys.rows]);
}

async function showDays(session, keys, rows) {
  const ids = keys.map((key) => ["id", key.id]);
  const used = await session.read("/usage/daily", [["days", DAYS], ...ids]);
  for (const [index, { id }] of keys.entries()) {
    const days = everyPeriod(DAYS - 1, false, used.filter((day) => day.id === id));
    rows[index].lastElementChild.replaceChildren(sparkline(days));
  }
}

function keyRow(key) {
  return row(
    element(
      "span", {}, linkTo(key.id, key.name), element("code", {}, key.id), element("small", {}, key.owner),
    ),
    cell(element("code", {}, key.scopes.join(" ") || "none"), "roomy"),
    cell(statusOf(key)),
    cell(moment(key.expires_at, "never"), "roomy"),
    cell(ago(key.last_used_at, "never"), "roomy"),
    cell("", "number"),
  );
}

function linkTo(id, name) {
  return element("a", { href: `#${id}` }, name);
}

function turnPages({ place }, parts, turnTo) {
  parts.previous.addEventListener("click", () => {
    if (place.after.length > 1) turnTo(place.after.slice(0, -1));
  });
  parts.next.addEventListener("click", () => {
    if (place.next) turnTo([...place.after, place.next]);
  });
}

function search({ place }, { search }, turnTo) {
  let waiting;
  search.value = place.search;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      place.search = search.value.trim();
      turnTo(FIRST_PAGE);
    }, PAUSE);
  });
}

async function showUsage({ session }, parts) {
  const used = await session.read("/usage", { days: 7 });
  parts.totals.replaceChildren(
    pair("Served", count(used.served)),
    pair("Refused for want of a scope", count(used.refused)),
    pair("Over a limit", count(used.limited)),
    pair("Refused without a key in force", count(used.strangers_refused)),
  );
  reveal(parts.strangers, used.strangers, strangerRow, "Nobody was.");
}

function strangerRow({ reason, network, refused }) {
  return row(reason, cell(network), countCell(refused));
}
