// One key: what it is, what it was used for, and what was done to it.

import { barChart, everyPeriod, totalOf } from "./charts.js";
import { changeKey, rotateKey, turnKey } from "./dialogs.js";
import {
  ago, cell, count, countCell, element, moment, pair, reveal, row, statusOf,
} from "./elements.js";

/** Gives the heading that the focus belongs to. */
export function openKey(desk, parts, id) {
  const path = `/${encodeURIComponent(id)}`;
  const show = () => desk.run(() => showKey(desk, parts, path));
  const showTurned = () => {
    parts.name.focus(); // or the focus would go with the button
    show();
  };
  const change = (dialog, done, ...what) => () =>
    desk.run(async () => dialog(desk, await desk.session.read(path), done, ...what));
  parts.name.textContent = id;
  parts.rotate.addEventListener("click", change(rotateKey, show));
  parts.change.addEventListener("click", change(changeKey, show));
  for (const verb of ["Pause", "Resume", "Revoke"]) {
    parts[verb.toLowerCase()].addEventListener("click", change(turnKey, showTurned, verb));
  }
  parts.days.addEventListener("change", () => desk.run(() => showUsage(desk, parts, path)));
  show();
  return parts.name;
}

async function showKey(desk, parts, path) {
  const key = await desk.session.read(path);
  parts.name.textContent = key.name;
  parts.status.replaceChildren(statusOf(key));
  parts.facts.replaceChildren(...factsOf(key));
  parts.rotate.hidden = parts.pause.hidden = key.status !== "active";
  parts.resume.hidden = key.status !== "paused";
  parts.change.hidden = parts.rotate.hidden && parts.resume.hidden;
  parts.revoke.hidden = key.status === "revoked";
  await Promise.all([showUsage(desk, parts, path), showEvents(desk, parts, path)]);
}

function factsOf(key) {
  const facts = [
    pair("Id", element("code", {}, key.id)),
    pair("Scopes", key.scopes.join(" ") || "none"),
    pair("Made", moment(key.created_at), ` by ${key.created_by}`),
    pair("Secret issued", moment(key.issued_at)),
    pair("Ends", moment(key.expires_at, "never")),
    pair("Last use", ago(key.last_used_at, "never")),
  ];
  if (key.owner) facts.push(pair("Owner", key.owner));
  if (key.note) facts.push(pair("Note", key.note));
  if (key.paused_at) facts.push(pair("Paused", moment(key.paused_at)));
  if (key.limits.length) facts.push(pair("Limits", key.limits.join(", "))); // part: limits
  if (key.networks.length) facts.push(pair("Networks", key.networks.join(", "))); // part: limits
  if (key.revoked_at) facts.push(pair("Revoked", moment(key.revoked_at)));
  if (key.old_key_expires_at) {
    facts.push(pair("Old secret ends", moment(key.old_key_expires_at)));
    facts.push(pair("Old secret’s last use", ago(key.old_key_last_used_at, "never")));
  }
  return facts;
}

async function showUsage({ session }, parts, path) {
  const days = Number(parts.days.value);
  const used = await session.read(`${path}/usage`, { days });
  if (days !== Number(parts.days.value)) return; // another choice was made meanwhile
  const { served, refused, limited } = used;
  parts.totals.replaceChildren(
    pair("Served", count(served)),
    pair("Refused", count(refused)),
    pair("Limited", count(limited)),
  );
  const hourly = days <= 7;
  const periods = everyPeriod(hourly ? days * 24 : days, hourly, used.by_hour);
  const label = `${count(served)} served, ${count(refused)} refused, ${count(limited)} limited`;
  parts.chart.replaceChildren(...barChart(periods, `${label}; the table below has all of it`));
  const none = "It was not used in this time.";
  reveal(parts.periods, periods.filter(totalOf).reverse(), periodRow, none, 24);
  reveal(parts.secrets, used.by_secret, secretRow, none);
}

function periodRow(period) {
  return row(period.title, ...outcomeCells(period));
}

function secretRow(secret) {
  const issued = moment(secret.created_at);
  return row(issued, cell(secret.in_force ? "yes" : "no"), ...outcomeCells(secret));
}

function outcomeCells({ served, refused, limited }) {
  return [served, refused, limited].map(countCell);
}

async function showEvents({ session }, { events }, path) {
  const done = await session.read(`${path}/events`);
  reveal(events, done.reverse(), eventRow, "Nothing was.");
}

function eventRow({ at, action, actor, changes }) {
  const fields = Object.entries(changes ?? {});
  const differ = fields.map(([name, values]) => `${name}: ${values.map(told).join(" → ")}`);
  return row(moment(at), cell(action), cell(actor), cell(differ.join("; ")));
}

function told(value) {
  return typeof value === "string" ? `“${value}”` : JSON.stringify(value);
}
