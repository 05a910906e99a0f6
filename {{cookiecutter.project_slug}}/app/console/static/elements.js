// Elements, and how numbers and times are written in them. What comes from the service is text
// wherever it goes: nothing here reads HTML.

const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const RELATIVE = new Intl.RelativeTimeFormat("en-GB", { numeric: "auto" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]]; // in seconds
const NUMBER = new Intl.NumberFormat("en-GB");

export function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...content);
  return made;
}

/** Fill a place with a copy of a template; gives the elements in it by their ids. */
export function fill(place, template) {
  place.replaceChildren(copyOf(template));
  return partsOf(place);
}

export function copyOf(template) {
  return document.getElementById(template).content.cloneNode(true);
}

export function partsOf(place) {
  return Object.fromEntries([...place.querySelectorAll("[id]")].map((part) => [part.id, part]));
}

export function row(heading, ...cells) {
  return element("tr", {}, element("th", { scope: "row" }, heading), ...cells);
}

export function cell(content, look = "") {
  return element("td", { class: look }, content);
}

export function count(number) {
  return NUMBER.format(number);
}

export function countCell(number) {
  return cell(count(number), "number");
}

/** A term and what it stands for, in a list of such pairs. */
export function pair(term, ...content) {
  return element("div", {}, element("dt", {}, term), element("dd", {}, ...content));
}

export function moment(text, otherwise) {
  return text ? time(text, MOMENT.format(new Date(text))) : otherwise;
}

export function ago(text, otherwise) {
  if (!text) return otherwise;
  const seconds = (Date.now() - new Date(text)) / 1000;
  return time(text, seconds < 60 ? "just now" : later(-seconds));
}

/** As "in 12 seconds", or "2 hours ago" if they are less than none. */
export function later(seconds) {
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length);
  return RELATIVE.format(Math.ceil(seconds / length), unit);
}

function time(text, shown) {
  return element("time", { datetime: text, title: text }, shown);
}

/** What a key is now, as a word with a colour. */
export function statusOf(key) {
  return element("span", { class: `status ${key.status}` }, key.status);
}

/** A button that cannot be used keeps the focus, unlike one that is disabled. */
export function setUsable(button, usable) {
  button.setAttribute("aria-disabled", `${!usable}`);
}

/** Show the first of the items, and the others on demand; a note, if there are none. */
export function reveal(list, items, show, note, some = 10) {
  const others = items.slice(some);
  const more = element("button", { type: "button" }, `Show ${count(others.length)} more`);
  more.addEventListener("click", () => {
    const shown = others.map(show);
    list.append(...shown);
    more.remove();
    shown[0].tabIndex = -1;
    shown[0].focus();
  });
  list.replaceChildren(...items.slice(0, some).map(show));
  const table = list.closest("table");
  table.nextElementSibling?.remove(); // of what was shown before
  if (others.length) table.after(more);
  else if (!items.length) table.after(element("p", { class: "quiet" }, note));
}
