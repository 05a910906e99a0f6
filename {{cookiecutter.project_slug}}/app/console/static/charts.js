// Bars of what was served, refused and limited, drawn as SVG.

import { count, element, setAttributes } from "./elements.js";

const SVG = "http://www.w3.org/2000/svg";
const OUTCOMES = ["served", "refused", "limited"];
const HEIGHT = 100;
const HOUR = 3600_000; // milliseconds
const DAY = 24 * HOUR;

/** The last days of a key, as small as a word, and how many requests they had. */
export function sparkline(days) {
  const [requests, served] = [sum(days, totalOf), sum(days, (day) => day.served)];
  const label = `${count(requests)} requests in ${days.length} days, ${count(served)} of them served`;
  const total = element("span", { class: "roomy", "aria-hidden": "true" }, count(requests));
  return element("span", { class: "spark" }, total, drawing("sparkline", label, days));
}

/** A bar for each period, with the highest one and the ends of the axis named. */
export function barChart(periods, label) {
  const most = Math.max(...periods.map(totalOf));
  const bars = drawing("bars", label, periods, (period) => `${period.title}: ${told(period)}`);
  const ends = [periods[0], periods[Math.floor(periods.length / 2)], periods.at(-1)];
  return element(
    "div",
    { class: "chart" },
    element("span", { class: "most" }, most ? `at most ${count(most)}` : "not used"),
    bars,
    element("div", { class: "axis" }, ...ends.map((end) => element("span", {}, end.title))),
  );
}

/** All days up to today, those without a request too. The days of the service are in UTC. */
export function everyDay(days, used) {
  const byDay = new Map(used.map((day) => [day.day, day]));
  return steps(days - 1, DAY, 10).map((day) => byDay.get(day) ?? nothing());
}

/** All hours of some days, or all days of many, with what was used in each. */
export function everyPeriod(days, used) {
  const hourly = days <= 7;
  const length = hourly ? 13 : 10; // of 2030-12-31T23, and of its day
  const periods = new Map(
    steps(hourly ? days * 24 : days, hourly ? HOUR : DAY, length).map((start) => [
      start,
      { ...nothing(), start, title: titleOf(start, hourly) },
    ]),
  );
  for (const each of used) {
    const period = periods.get(each.starts_at.slice(0, length));
    for (const outcome of OUTCOMES) if (period) period[outcome] += each[outcome];
  }
  return [...periods.values()];
}

export function totalOf(period) {
  return sum(OUTCOMES, (outcome) => period[outcome]);
}

function told(period) {
  return OUTCOMES.map((outcome) => `${count(period[outcome])} ${outcome}`).join(", ");
}

function nothing() {
  return { served: 0, refused: 0, limited: 0 };
}

/** The beginnings of the last so many periods and of this one, as the service writes them. */
function steps(periods, milliseconds, length) {
  const now = Date.now();
  return Array.from({ length: periods + 1 }, (_, index) =>
    new Date(now - (periods - index) * milliseconds).toISOString().slice(0, length),
  );
}

function titleOf(start, hourly) {
  if (!hourly) return start;
  const options = { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return new Date(`${start}:00Z`).toLocaleString("en-GB", options);
}

function sum(items, numberOf) {
  return items.reduce((total, item) => total + numberOf(item), 0);
}

function drawing(look, label, periods, titleOfBar) {
  const most = Math.max(1, ...periods.map(totalOf));
  const svg = shape("svg", {
    class: look,
    role: "img",
    "aria-label": label,
    viewBox: `0 0 ${periods.length * 10} ${HEIGHT}`,
    preserveAspectRatio: "none",
  });
  svg.append(...periods.map((period, index) => bar(period, index * 10, HEIGHT / most, titleOfBar)));
  return svg;
}

function bar(period, x, scale, titleOfBar) {
  const group = shape("g", {});
  if (titleOfBar) {
    group.append(shape("title", {}, titleOfBar(period)));
    group.append(shape("rect", { class: "behind", x, y: 0, width: 10, height: HEIGHT }));
  }
  let y = HEIGHT;
  for (const outcome of OUTCOMES.filter((outcome) => period[outcome])) {
    const height = Math.max(period[outcome] * scale, 2); // or nobody would see it
    y = Math.max(0, y - height);
    group.append(shape("rect", { class: outcome, x: x + 1, y, width: 8, height }));
  }
  return group;
}

function shape(name, attributes, ...content) {
  const made = document.createElementNS(SVG, name);
  setAttributes(made, attributes);
  made.append(...content);
  return made;
}
