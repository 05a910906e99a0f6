// Bars of what was served, refused and limited.

import { count, element } from "./elements.js";

const OUTCOMES = ["served", "refused", "limited"];
const HOUR = 3600_000; // milliseconds

/** The last days of a key, as small as a word, and how many requests they had. */
export function sparkline(days) {
  const [requests, served] = [sum(days, totalOf), sum(days, (day) => day.served)];
  const label = `${count(requests)} requests in ${days.length} days, ${count(served)} of them served`;
  const total = element("small", { class: "roomy", "aria-hidden": "true" }, count(requests));
  return element("span", { class: "spark" }, total, drawing("sparkline", label, days));
}

/** A bar for each period, with the highest one and the ends of the axis named. */
export function barChart(periods, label) {
  const most = Math.max(...periods.map(totalOf));
  const ends = [periods[0], periods[Math.floor(periods.length / 2)], periods.at(-1)];
  return [
    element("small", {}, most ? `at most ${count(most)}` : "not used"),
    drawing("bars", label, periods),
    element("div", { class: "axis" }, ...ends.map((end) => element("small", {}, end.title))),
  ];
}

/** So many hours or days and the present one, in UTC, with what was used in each. */
export function everyPeriod(number, hourly, used) {
  const length = hourly ? 13 : 10; // of 2030-12-31T23, and of its day
  const now = Date.now();
  const periods = new Map();
  for (let ago = number; ago >= 0; ago--) {
    const start = new Date(now - ago * HOUR * (hourly ? 1 : 24)).toISOString().slice(0, length);
    periods.set(start, { title: titleOf(start, hourly), served: 0, refused: 0, limited: 0 });
  }
  for (const each of used) {
    const period = periods.get((each.day ?? each.starts_at).slice(0, length));
    for (const outcome of OUTCOMES) if (period) period[outcome] += each[outcome];
  }
  return [...periods.values()];
}

export function totalOf(period) {
  return sum(OUTCOMES, (outcome) => period[outcome]);
}

function titleOf(start, hourly) {
  if (!hourly) return start;
  const options = { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return new Date(`${start}:00Z`).toLocaleString("en-GB", options);
}

function sum(items, numberOf) {
  return items.reduce((total, item) => total + numberOf(item), 0);
}

function drawing(look, label, periods) {
  const most = Math.max(...periods.map(totalOf));
  const bars = periods.map((period) => {
    const told = OUTCOMES.map((outcome) => `${count(period[outcome])} ${outcome}`).join(", ");
    const bar = element("span", { title: `${period.title}: ${told}` });
    for (const outcome of OUTCOMES.filter((outcome) => period[outcome])) {
      const part = element("i", { class: outcome });
      part.style.height = `${(100 * period[outcome]) / most}%`;
      bar.append(part);
    }
    return bar;
  });
  return element("span", { class: look, role: "img", "aria-label": label }, ...bars);
}
