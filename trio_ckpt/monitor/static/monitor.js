// The page of the monitor: reads a stream of pictures, draws what has changed, says when it is cut off.

const QUIET_MS = 25_000; // the server says something every 10 s
const MAX_BACKOFF_MS = 15_000;
const PAGE = 25;
const JOB_EVERY_MS = 3_000; // a job is asked for apart: its items may be many
const MAX_ITEMS = 200;
const FEW = { pending: 8, failures: 6, streams: 12, items: 12 }; // rows before the viewer asks for all
const PLOT = { width: 1000, height: 150, left: 46, bottom: 20, top: 8 };

const $ = (id) => document.getElementById(id);
const FEW_TO_SEARCH = 12; // names that one reads without searching
const MAX_FOUND = 100;
const state = {
  secret: null, run: null, runs: null, detail: null, skew: 0, cutSince: null, stream: null, announced: "",
  found: { runs: null, streams: null }, // instead of what the pictures have, while the viewer searches
  wanted: null, // the key of a stream whose checkpoints a link asks for
};

const SEARCH_AFTER_MS = 200; // after the last letter

// ---------------------------------------------------------------- words

const numbers = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

const number = (value) => (value === null || value === undefined ? "–" : numbers.format(value));
const rate = (value) => (value >= 10 ? numbers.format(Math.round(value)) : small.format(value));
const words = (status) => status.replace("_", " ");
const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
const now = () => Date.now() + state.skew;
const since = (iso) => Math.max(0, (now() - Date.parse(iso)) / 1000);

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

const ago = (iso) => (iso ? `${span(since(iso))} ago` : "–");

// ---------------------------------------------------------------- drawing

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

const expanded = new Set();

// The first few of a long table, and a button for the rest.
function few(name, entries) {
  const button = $(`${name}-more`);
  const isLong = entries.length > FEW[name] + 2;
  show(button, isLong);
  button.setAttribute("aria-expanded", String(expanded.has(name)));
  text(button, expanded.has(name) ? "Show fewer" : `Show all ${number(entries.length)}`);
  return isLong && !expanded.has(name) ? entries.slice(0, FEW[name]) : entries;
}

// Rows are kept by their key, and cells by their content: what is the same is not touched, so
// that a selection, a focus or a screen reader in the table stays where it is.
function rows(table, entries, key, cells, none) {
  const body = table.tBodies[0];
  const old = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const wanted = entries.length ? entries : none ? [null] : [];
  wanted.forEach((entry, at) => {
    const name = entry === null ? "none" : key(entry);
    const row = old.get(name) ?? make("tr");
    old.delete(name);
    row.dataset.key = name;
    const made = entry === null ? [{ text: none, span: table.tHead.rows[0].cells.length }] : cells(entry, row);
    row.classList.toggle("none", entry === null);
    while (row.cells.length > made.length) row.deleteCell(-1);
    made.forEach((cell, place) => draw(row.cells[place] ?? row.insertCell(), cell));
    if (body.rows[at] !== row) body.insertBefore(row, body.rows[at] ?? null);
  });
  for (const row of old.values()) row.remove();
}

function draw(td, cell) {
  const { text: content = "", className = "", nodes, title = "", span: columns = 1, percent, tag } = cell;
  const signature = JSON.stringify([content, className, title, percent, tag, nodes?.map((node) => node.outerHTML)]);
  if (td.dataset.signature === signature) return;
  td.dataset.signature = signature;
  td.className = className;
  td.title = title;
  td.colSpan = columns;
  if (nodes) td.replaceChildren(...nodes);
  else if (percent !== undefined) td.replaceChildren(gauge(percent, content));
  else td.replaceChildren(content, ...(tag ? [make("span", { className: "tag" }, tag)] : []));
}

function gauge(percent, label) {
  const fill = make("div");
  fill.style.width = `${Math.max(0, Math.min(100, percent ?? 0))}%`;
  const track = make("div", { className: "gauge" }, fill);
  track.setAttribute("aria-hidden", "true");
  return label ? make("div", { className: "cell-bar" }, track, make("span", {}, label)) : track;
}

// A stream anywhere on the page leads to its checkpoints, and can be shared as a link.
const streamAddress = (key) => `#/${encodeURIComponent(state.run)}?stream=${encodeURIComponent(JSON.stringify(key))}`;
const streamLink = (one) => make("a", { href: streamAddress(one.stream), title: "its checkpoints" }, one.name);

const pill = (status) => {
  const node = make("span", { className: "pill" }, words(status));
  node.dataset.status = status;
  return node;
};

// A stop is not a status of its own, but the page shows it in place of one.
const statusOf = (run) => (run.stopping ? "stopping" : run.status);

function stopText(stop) {
  if (!stop.open) return "Every open batch is saved.";
  const more = stop.open - stop.batches.length;
  const names = [...stop.batches, ...(more ? [`${number(more)} more`] : [])].join(", ");
  const left = stop.until === null ? "" : ` at most ${span(Math.max(0, (Date.parse(stop.until) - now()) / 1000))} more`;
  return `The stop waits${left} for ${plural(stop.open, "batch", "batches")}: ${names}.`;
}

const percentText = (percent) => (percent === null ? "" : `${percent >= 99.95 && percent < 100 ? "99.9" : percent.toFixed(percent === 100 ? 0 : 1)} %`);

const sumOf = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

function drawRuns() {
  const { store } = state.runs;
  const { runs, unreadable, total } = state.found.runs ?? state.runs;
  text($("where"), store);
  text($("runs-count"), number(total));
  show($("runs-search"), state.found.runs !== null || state.runs.total > FEW_TO_SEARCH);
  $("layout").classList.toggle("single", state.runs.total <= 1 && !state.runs.unreadable.length);
  const list = $("run-list");
  const old = new Map([...list.children].map((item) => [item.dataset.run, item]));
  runs.forEach((run, at) => {
    let item = old.get(run.run);
    if (!item) {
      item = make("li", {}, make("a", { href: `#/${encodeURIComponent(run.run)}` },
        make("span", { className: "name" }, make("span", {}, run.run), make("span")),
        make("span", { className: "sub" }, make("span"), make("span")),
        make("div", { className: "mini" }, make("div"))));
      item.dataset.run = run.run;
    }
    old.delete(run.run);
    const link = item.firstElementChild;
    const [, percent] = link.children[0].children;
    const [what, flag] = link.children[1].children;
    text(percent, percentText(run.progress_percent));
    text(what, words(statusOf(run)) + (run.rate_per_s ? ` · ${rate(run.rate_per_s)}/s` : ""));
    text(flag, run.stuck ? `${run.stuck} stuck` : run.error && run.status === "failed" ? "failed" : "");
    flag.className = "flag";
    link.children[2].firstElementChild.style.width = `${run.progress_percent ?? 0}%`;
    if (run.run === state.run) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    if (list.children[at] !== item) list.insertBefore(item, list.children[at] ?? null);
  });
  for (const item of old.values()) item.remove();
  const notes = unreadable.map((one) => `${one.run} cannot be read: ${one.message}`);
  if (total > runs.length + unreadable.length) notes.push(`${number(total - runs.length)} more are in the API`);
  text($("runs-note"), notes.join(". "));
  show($("runs-note"), notes.length > 0);
  if (!state.runs.total) text($("nothing"), "This store has no runs yet.");
}

function who(run) {
  const parts = [];
  if (run.owner) parts.push(`process ${run.owner.pid} on ${run.owner.host}, for ${span(since(run.owner.since))}`);
  else if (run.session) parts.push(`no process runs it; session ${run.session.number} ${run.session.how}`);
  else parts.push("it has had no session");
  if (run.session && run.owner) parts.push(`session ${number(run.session.number)}`);
  if (run.generation) parts.push(`generation ${number(run.generation)}`);
  if (run.updated_at) parts.push(`last saved ${ago(run.updated_at)}`);
  if (run.owner && run.seen === "stored") parts.push("its pending tokens cannot be seen from here");
  return parts.join(" · ");
}

function drawRun() {
  const { run } = state.detail;
  show($("nothing"), false);
  show($("run"), true);
  const { batches } = run;
  const done = batches.confirmed + batches.skipped;
  text($("run-name"), run.run);
  text($("run-status"), words(statusOf(run)));
  $("run-status").dataset.status = statusOf(run);
  show($("run-phase"), Boolean(run.phase));
  text($("run-phase"), run.phase ? `phase ${run.phase}` : "");
  text($("percent"), percentText(run.progress_percent));
  text($("progress-text"), run.partitions
    ? `${number(run.partitions.complete)} of ${plural(sumOf(run.partitions), "partition")} complete; ${plural(done, "batch", "batches")} done`
    : batches.left === null
    ? `${plural(done, "batch", "batches")} done; how many there are is unknown`
    : `${number(done)} of ${plural(done + batches.left, "batch", "batches")}${batches.left ? `, ${number(batches.left)} left` : ""}`);
  text($("eta"), eta(run));
  const all = run.partitions ? sumOf(run.partitions) : batches.left === null ? null : done + batches.left;
  const bar = $("bar");
  bar.classList.toggle("unknown", all === null && run.status !== "complete");
  if (run.progress_percent === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", String(run.progress_percent));
  bar.setAttribute("aria-valuetext", $("progress-text").textContent);
  $("bar-done").style.width = all ? `${(100 * (run.partitions?.complete ?? batches.confirmed)) / all}%` : "0";
  $("bar-skipped").style.width = all && !run.partitions ? `${(100 * batches.skipped) / all}%` : "0";
  document.title = [run.stopping ? "stopping" : percentText(run.progress_percent) || words(run.status), run.run].join(" · ");
  drawFacts();
  drawFailures();
  drawJob();
  drawStreams();
  if (state.found.streams) search("streams"); // what was found goes on, too
  drawGroups();
  drawPlot();
  drawHistoryChoice();
  show($("action-stop"), run.running);
  show($("action-pause"), !state.detail.paused);
  show($("action-resume"), state.detail.paused !== null);
  show($("action-retry"), !run.running);
  show($("actions-panel"), state.runs.actions);
  drawAges();
}

function eta(run) {
  if (!run.running || run.batches.left === 0 || run.stopping) return "";
  if (run.eta_s !== null) return `${span(run.eta_s)} to go, at ${clock.format(new Date(now() + run.eta_s * 1000))}`;
  return run.rate_per_s === null ? "too early for an estimate" : "";
}

function drawFacts() {
  const { run } = state.detail;
  const facts = [
    ["Confirmed", number(run.batches.confirmed), run.session?.confirmed !== null && run.session ? `${number(run.session.confirmed)} in this session` : ""],
    ["Rate", run.rate_per_s === null ? "–" : `${rate(run.rate_per_s)}/s`, run.running ? "of this session" : "no process runs it"],
    ...(state.detail.paused ? [["Paused", "yes", state.detail.paused, "warn"]] : []),
    ["Failing", number(run.batches.failing), "may run again", run.batches.failing ? "bad" : ""],
    ...(run.batches.deferred ? [["Deferred", number(run.batches.deferred), `from ${clock.format(new Date(run.next_due))} on`]] : []),
    ["Skipped", number(run.batches.skipped), "given up", run.batches.skipped ? "warn" : ""],
    ["Records", number(run.records), ""],
    ["Runtime", span(run.runtime_s), run.session ? plural(run.session.number, "session") : ""],
    ...Object.entries(run.produced).map(([name, value]) => [name, number(value), "produced"]),
    ...Object.entries(run.spent).map(([name, value]) => [name, number(value),
      `spent; ${number(run.spent_on_confirmed[name] ?? 0)} on confirmed`]),
    ...Object.entries(run.noted).map(([name, value]) => [name, number(value), "noted as spent, beside that"]),
    ...Object.entries(run.assumed).map(([name, value]) => [name, number(value), "reserved and not settled, beside that", "warn"]),
  ];
  const list = $("facts");
  while (list.children.length > facts.length) list.lastElementChild.remove();
  facts.forEach(([name, value, more, mood = ""], at) => {
    const box = list.children[at] ?? list.appendChild(make("div", {}, make("dt"), make("dd", {}, make("span"), make("small"))));
    box.className = mood;
    text(box.children[0], name);
    text(box.children[1].children[0], value);
    text(box.children[1].children[1], more);
  });
}

function isStuck(token) {
  return !token.stale && !token.waits_until && since(token.begun_at) >= state.detail.run.stuck_after_s;
}

function tagsOf(token) {
  if (isStuck(token)) return [make("span", { className: "tag" }, "stuck")];
  return token.waits_until && !token.stale ? [make("span", { className: "tag waits" }, "waiting")] : []; // where there is no column of states
}

function stateOf(token) {
  if (token.stale) return "was pending";
  if (token.state === "completed") return "being saved";
  if (!token.waits_until) return "at work";
  const until = new Date(token.waits_until);
  return until > now() ? `waiting until ${clock.format(until)}` : "waiting for its turn";
}

// What goes on while no picture comes: ages, and with them what is stuck.
function drawAges() {
  if (!state.detail) return;
  const { run, pending, pending_total: total } = state.detail;
  text($("run-who"), who(run));
  const after = run.stuck_after_s;
  const stuck = pending.filter(isStuck);
  const stale = pending.some((token) => token.stale);
  $("pending-panel").classList.toggle("alarm", stuck.length > 0);
  const waiting = pending.filter((token) => token.waits_until).length;
  const counts = [number(total), ...(waiting ? [`${number(waiting)} waiting`] : []), ...(stuck.length ? [`${number(stuck.length)} stuck`] : [])];
  text($("pending-count"), stale || !total ? "" : counts.join(", "));
  rows($("pending"), few("pending", pending), (token) => JSON.stringify([token.stream, token.batch_index]), (token, row) => {
    const age = token.waits_until ? 0 : since(token.begun_at);
    const bad = isStuck(token);
    row.classList.toggle("stuck", bad);
    return [
      { nodes: [streamLink(token), ...tagsOf(token)] },
      { text: number(token.batch_index), className: "n" },
      { text: stateOf(token), className: "soft state" },
      { text: span(since(token.created_at)), className: "n", title: `since ${day.format(new Date(token.created_at))}` },
      { nodes: [gauge(Math.round((100 * Math.min(age, after)) / after))], className: "wide" },
    ];
  }, run.seen === "stored" && run.running ? "They cannot be seen from here." : "None.");
  const notes = [];
  if (stale) notes.push("The process that had these is gone: the next start does their batches again.");
  else if (stuck.length) notes.push(`Older than ${span(after)}, which is not usual here.`);
  if (total > pending.length) notes.push(`The oldest ${number(pending.length)} of ${number(total)} are shown.`);
  if (run.stopping) notes.push(stopText(run.stopping));
  for (const wait of run.waiting) notes.push(`${wait.name} waits: ${wait.reason}.`);
  text($("pending-note"), notes.join(" "));
  show($("pending-note"), notes.length > 0);
  for (const cell of document.querySelectorAll("[data-ago]")) text(cell, ago(cell.dataset.ago));
  announce();
}

function drawFailures() {
  const { failures, failures_total: total } = state.detail;
  text($("failures-count"), total ? number(total) : "");
  rows($("failures"), few("failures", failures), (one) => JSON.stringify([one.stream, one.batch_index, one.outcome]), (one) => [
    { nodes: [streamLink(one)] },
    one.batch_index === null ? { text: "all", className: "n whole" } : { text: number(one.batch_index), className: "n" },
    { nodes: [outcome(one)] },
    { text: one.attempts === null ? "" : number(one.attempts), className: "n" },
    { nodes: [reason(one.error)], className: "wide" },
  ], "None.");
}

function outcome(one) {
  const node = make("span", { className: "pill" }, one.outcome);
  node.dataset.status = { failed: "failed", skipped: "interrupted" }[one.outcome] ?? "pending";
  return node;
}

function reason(error) {
  if (!error) return make("span", { className: "soft" }, "no reason was kept");
  return make("span", { className: "reason" }, make("b", {}, error.type === "str" ? "" : `${error.type}: `), error.message);
}

function drawStreams() {
  const { streams, streams_total: total } = state.found.streams ?? state.detail;
  text($("streams-count"), number(total));
  show($("streams-search"), state.found.streams !== null || total > FEW_TO_SEARCH);
  rows($("streams"), few("streams", streams), (one) => JSON.stringify(one.stream), (one) => [
    { nodes: [streamLink(one)] },
    { nodes: [pill(one.status)] },
    { text: number(one.batches.confirmed), className: "n" },
    { text: one.batches.left === null ? "?" : number(one.batches.left), className: "n" },
    { text: number(one.batches.skipped), className: "n" },
    { text: number(one.records), className: "n" },
    { percent: one.progress_percent, text: percentText(one.progress_percent) || "–" },
    { text: one.runtime_s ? span(one.runtime_s) : "–", className: "n", title: "open, over all sessions" },
    { nodes: [agoNode(one.updated_at)], className: "n soft" },
  ], state.found.streams ? "No stream has that in its name." : "None yet.");
  show($("streams-note"), total > streams.length);
  text($("streams-note"), `The ${number(streams.length)} that need attention first; ${number(total - streams.length)} more are in the API.`);
}

function agoNode(iso) {
  const node = make("span", {}, ago(iso));
  if (iso) node.dataset.ago = iso;
  return node;
}

const ITEM_PILLS = { running: "in_progress", assigned: "in_progress", completed: "complete", failed: "failed", cancelled: "interrupted", pending: "pending" };

async function drawJob() {
  const { run } = state;
  const isJob = run !== null && run.startsWith("job-");
  show($("job-panel"), isJob);
  if (!isJob || Date.now() - (state.jobAt ?? 0) < JOB_EVERY_MS) return;
  state.jobAt = Date.now();
  try {
    const job = await ask(`/api/checkpoints/jobs/${encodeURIComponent(run)}?limit=${MAX_ITEMS}`);
    if (run !== state.run) return;
    state.job = job;
    drawItems();
  } catch (problem) {
    text($("job-note"), problem.message);
  }
}

function drawItems() {
  const { job } = state;
  text($("job-count"), `${number(job.completed_tasks)} of ${number(job.total_tasks)} done`);
  const parts = [`${job.function}, ${job.job_status}`, `${percentText(job.average_progress_percent)} on average`, plural(job.total_checkpoints_taken, "checkpoint")];
  if (job.waits) parts.push(job.waits);
  if (job.failed_tasks) parts.push(`${number(job.failed_tasks)} failed`);
  if (job.total_tasks > job.tasks.length) parts.push(`the first ${number(job.tasks.length)} are shown`);
  text($("job-note"), `${parts.join(" · ")}.`);
  rows($("items"), few("items", job.tasks), (one) => one.task_id, (one) => [
    { text: one.task_id },
    { nodes: [itemPill(one.status)] },
    { percent: one.progress_percent, text: percentText(one.progress_percent) },
    { text: one.checkpoint_count === null ? "?" : number(one.checkpoint_count), className: "n" },
    { nodes: [agoNode(one.last_checkpoint_at)], className: "n soft" },
    { text: one.worker ?? "", className: "soft" },
    one.error ? { nodes: [reason(one.error)] } : { text: one.problem ?? "" },
  ], "None.");
}

function itemPill(status) {
  const node = make("span", { className: "pill" }, status);
  node.dataset.status = ITEM_PILLS[status];
  return node;
}

function drawGroups() {
  const { groups, groups_total: total } = state.detail;
  show($("groups-panel"), groups.length > 1);
  text($("groups-count"), number(total));
  rows($("groups"), groups, (one) => JSON.stringify(one.group), (one) => [
    { text: one.name },
    { nodes: [pill(one.status)] },
    { text: number(one.streams), className: "n" },
    { text: number(one.batches.confirmed), className: "n" },
    { text: one.batches.left === null ? "?" : number(one.batches.left), className: "n" },
    { percent: one.progress_percent, text: percentText(one.progress_percent) || "–" },
  ]);
}

// ---------------------------------------------------------------- the plot

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, content) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  if (content !== undefined) node.textContent = content;
  return node;
}

function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function drawPlot() {
  const points = state.detail.pace;
  const svg = $("plot-svg");
  const width = svg.clientWidth || PLOT.width;
  const { height, left, bottom, top } = PLOT;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("plot").classList.toggle("bare", points.length < 2);
  if (points.length < 2) {
    svg.replaceChildren();
    text($("plot-caption"), state.detail.run.running ? "The curve begins after some seconds." : "No process runs it now.");
    return;
  }
  const peak = Math.max(...points.map((point) => point.per_s));
  const most = ceiling(Math.max(peak, 0.01));
  const first = points[0].at;
  const last = points[points.length - 1].at;
  const x = (at) => left + ((width - left) * (at - first)) / Math.max(1, last - first);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const line = points.map((point) => `${x(point.at).toFixed(1)},${y(point.per_s).toFixed(1)}`).join(" L");
  const nodes = [0, 0.5, 1].flatMap((part) => [
    shape("line", { class: "grid", x1: left, x2: width, y1: y(most * part), y2: y(most * part) }),
    shape("text", { x: left - 8, y: y(most * part) + 4, "text-anchor": "end" }, small.format(most * part)),
  ]);
  nodes.push(
    shape("path", { class: "area", d: `M${x(first).toFixed(1)},${y(0)} L${line} L${x(last).toFixed(1)},${y(0)} Z` }),
    shape("path", { class: "curve", d: `M${line}` }),
    shape("text", { x: left, y: height - 4 }, clock.format(new Date(first * 1000))),
    shape("text", { x: width, y: height - 4, "text-anchor": "end" }, clock.format(new Date(last * 1000))),
  );
  svg.replaceChildren(...nodes);
  const newest = points[points.length - 1].per_s;
  text($("plot-caption"), `${rate(newest)} now, ${rate(peak)} at most in the last ${span(last - first)}.`);
}

// ---------------------------------------------------------------- history

const SESSIONS = ["Session", "Process", "Began", "Took", "Confirmed", "How it ended"];
const CHECKPOINTS = ["Checkpoint", "Batch", "Saved at", "Records", "Files", "What went wrong"];

function drawHistoryChoice() {
  const select = $("history-stream");
  const names = state.detail.streams.map((one) => [JSON.stringify(one.stream), one.name]);
  const signature = JSON.stringify([state.run, names.map(([key]) => key).sort()]);
  if (select.dataset.signature === signature) return;
  const isSameRun = select.dataset.run === state.run;
  if (!isSameRun) show($("history-scroll"), false);
  select.dataset.signature = signature;
  select.dataset.run = state.run;
  const chosen = select.value;
  const sorted = names.sort(([, one], [, other]) => one.localeCompare(other));
  select.replaceChildren(make("option", { value: "" }, "sessions of the run"),
    ...sorted.map(([value, name]) => make("option", { value }, `checkpoints of ${name}`)));
  choose(select, isSameRun ? chosen : "");
  if (state.wanted) openStream();
}

function choose(select, key) {
  if (![...select.options].some((option) => option.value === key)) {
    select.append(make("option", { value: key }, `checkpoints of ${JSON.parse(key).join("/")}`));
  }
  select.value = key;
}

// What a link to a stream asks for.
async function openStream() {
  choose($("history-stream"), state.wanted);
  state.wanted = null;
  await loadHistory("");
  $("history-title").scrollIntoView({ block: "start" });
  $("history-scroll").focus({ preventScroll: true });
}

// ---------------------------------------------------------------- searching

async function search(what) {
  const wanted = $(`${what}-search`).value.trim();
  const { run } = state;
  if (wanted) {
    const path = what === "runs" ? "/api/runs" : `/api/runs/${encodeURIComponent(run)}/streams`;
    const found = await ask(`${path}?${new URLSearchParams({ search: wanted, limit: String(MAX_FOUND) })}`).catch(() => null);
    if (found === null || run !== state.run || wanted !== $(`${what}-search`).value.trim()) return;
    state.found[what] = what === "runs" ? found : { streams: found.streams, streams_total: found.total };
  } else {
    state.found[what] = null;
  }
  if (what === "runs") drawRuns();
  else if (state.detail) drawStreams();
}

function forgetFound(what) {
  $(`${what}-search`).value = "";
  state.found[what] = null;
}

async function loadHistory(cursor) {
  const stream = $("history-stream").value;
  const base = `/api/runs/${encodeURIComponent(state.run)}`;
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (stream) query.set("stream", stream);
  if (cursor) query.set("cursor", cursor);
  const note = $("history-note");
  try {
    const answer = await ask(`${base}/${stream ? "history" : "sessions"}?${query}`);
    const table = $("history");
    if (!cursor) {
      table.tBodies[0].replaceChildren();
      const heads = (stream ? CHECKPOINTS : SESSIONS).map((name) => make("th", { scope: "col" }, name));
      table.tHead.replaceChildren(make("tr", {}, ...heads));
    }
    const lines = stream ? answer.checkpoints.map(checkpointCells) : answer.sessions.map(sessionCells);
    for (const cells of lines) {
      const row = table.tBodies[0].insertRow();
      for (const cell of cells) draw(row.insertCell(), cell);
    }
    show($("history-scroll"), true);
    show($("history-more"), Boolean(answer.next));
    $("history-more").dataset.cursor = answer.next ?? "";
    text(note, lines.length ? "" : "Nothing is saved yet.");
  } catch (problem) {
    text(note, problem.message);
  }
  show(note, Boolean(note.textContent));
}

const sessionCells = (one) => [
  { text: number(one.number) },
  { text: `${one.pid} on ${one.host}` },
  { text: day.format(new Date(one.began)) },
  { text: span(one.seconds) },
  { text: number(one.confirmed) },
  { text: one.how },
];

const checkpointCells = (one) => [
  { text: `${number(one.sequence)} ${one.kind}` },
  { text: one.batch_index === null ? "–" : number(one.batch_index) },
  { text: day.format(new Date(one.at)), title: one.at },
  { text: number(one.records) },
  { text: one.outputs.map((file) => file.path).join(", ") + (one.outputs_total > one.outputs.length ? ` and ${number(one.outputs_total - one.outputs.length)} more` : ""), className: "mono" },
  one.error ? { nodes: [reason(one.error)] } : { text: "" },
];

// ---------------------------------------------------------------- asking

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, { method = "GET", secret = state.secret, signal } = {}) {
  const response = await fetch(path, { method, signal, headers: { Authorization: `Bearer ${secret}` }, cache: "no-store", credentials: "omit" });
  if (!response.ok) {
    const problem = await response.json().catch(() => null);
    throw new Refused(response.status, problem?.error?.message ?? `the server answered ${response.status}`);
  }
  return method === "GET" && response.headers.get("content-type")?.startsWith("text/event-stream") ? response : response.json();
}

// ---------------------------------------------------------------- the stream of pictures

async function* eventsOf(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    buffer += value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const fields = Object.fromEntries(buffer.slice(0, end).split("\n").filter((line) => /^\w+: /.test(line))
        .map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      buffer = buffer.slice(end + 2);
      if (fields.event) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

const wait = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
});

async function follow(signal) {
  let backoff = 500;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop, { once: true });
    let watchdog;
    const alive = () => { clearTimeout(watchdog); watchdog = setTimeout(stop, QUIET_MS); };
    try {
      alive();
      const query = state.run === null ? "" : `?run=${encodeURIComponent(state.run)}`;
      const response = await ask(`/api/events${query}`, { signal: attempt.signal });
      for await (const [name, data] of eventsOf(response, alive)) {
        backoff = 500;
        if (take(name, data)) return connect(); // another run was chosen
      }
    } catch (problem) {
      if (signal.aborted) return undefined;
      if (problem instanceof Refused && problem.status === 401) return lock("That is not the secret of this monitor.");
      if (problem instanceof Refused && problem.status === 404) { state.run = null; location.hash = ""; }
    } finally {
      clearTimeout(watchdog);
      signal.removeEventListener("abort", stop);
    }
    if (signal.aborted) return undefined;
    cut(backoff);
    await wait(backoff, signal);
    backoff = Math.min(MAX_BACKOFF_MS, backoff * 2);
  }
  return undefined;
}

function take(name, data) {
  if (name === "problem") {
    banner(data.error.message);
    return false;
  }
  live();
  state.skew = Date.parse(data.at) - Date.now();
  if (name === "runs") {
    state.runs = data;
    if (state.run === null && data.runs.length) {
      const newest = [...data.runs].sort((one, other) => Number(other.running) - Number(one.running) || (Date.parse(other.updated_at ?? 0) || 0) - (Date.parse(one.updated_at ?? 0) || 0))[0];
      state.run = newest.run;
      drawRuns();
      return true;
    }
    drawRuns();
  } else if (name === "run" && data.run.run === state.run) {
    state.detail = data;
    drawRun();
  }
  return false;
}

function connect() {
  state.stream?.abort();
  state.stream = new AbortController();
  show($("gate"), false);
  show($("layout"), true);
  follow(state.stream.signal);
}

function live() {
  $("link").dataset.state = "live";
  text($("link-text"), "live");
  if (state.cutSince !== null) text($("say"), "Connected again.");
  state.cutSince = null;
  banner("");
}

function cut(backoff) {
  state.cutSince ??= Date.now();
  $("link").dataset.state = "cut";
  text($("link-text"), "cut off");
  const at = clock.format(new Date(state.cutSince));
  banner(`Cut off since ${at}: what you see is from then. Trying again${backoff > 1000 ? ` every ${Math.round(backoff / 1000)} s` : ""} …`);
}

function banner(message) {
  text($("banner"), message);
  show($("banner"), Boolean(message));
}

// For a screen reader: what matters, when it begins to be so.
function announce() {
  const { run, pending } = state.detail;
  const stuck = pending.filter(isStuck).length;
  const said = `${run.run} is ${words(statusOf(run))}${stuck ? `, ${plural(stuck, "token")} stuck` : ""}${run.batches.failing ? `, ${plural(run.batches.failing, "batch", "batches")} failing` : ""}.`;
  if (said !== state.announced) {
    state.announced = said;
    text($("say"), said);
  }
}

// ---------------------------------------------------------------- who may look

function lock(problem = "") {
  state.stream?.abort();
  state.secret = null;
  sessionStorage.removeItem("secret");
  $("link").dataset.state = "off";
  text($("link-text"), "not connected");
  banner("");
  show($("layout"), false);
  show($("gate"), true);
  text($("gate-problem"), problem);
  $("secret").value = "";
  $("secret").focus();
}

function enter(secret) {
  state.secret = secret;
  sessionStorage.setItem("secret", secret);
  connect();
}

// "#SECRET" once, from the line that was printed; "#/RUN" and "#/RUN?stream=KEY" from then on.
function readHash() {
  const [address, query] = location.hash.slice(1).split("?");
  const hash = decodeURIComponent(address);
  if (hash.startsWith("/")) return { run: hash.slice(1) || null, stream: keyOf(new URLSearchParams(query).get("stream")) };
  if (!hash || hash === "main") return {};
  history.replaceState(null, "", location.pathname);
  return { secret: hash };
}

function keyOf(written) {
  try {
    const parts = JSON.parse(written);
    return Array.isArray(parts) && parts.length && parts.every((part) => typeof part === "string") ? JSON.stringify(parts) : null;
  } catch {
    return null;
  }
}

function begin() {
  const { run = null, stream = null, secret } = readHash();
  state.run = run;
  state.wanted = stream;
  const known = secret ?? sessionStorage.getItem("secret");
  if (known) enter(known);
  else lock();
}

window.addEventListener("hashchange", () => {
  const { run, stream = null, secret } = readHash();
  state.wanted = stream;
  if (secret) enter(secret);
  else if (run === state.run && stream && state.detail) openStream();
  else if (run !== undefined && run !== state.run && state.secret) {
    state.run = run;
    forgetFound("streams");
    show($("actions-note"), false);
    state.detail = state.job = state.jobAt = null;
    state.announced = "";
    show($("run"), false);
    show($("nothing"), true);
    connect();
    $("main").focus();
  }
});
window.addEventListener("resize", () => state.detail && drawPlot());
$("gate-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const secret = $("secret").value.trim();
  if (secret) enter(secret);
});
$("history-load").addEventListener("click", () => loadHistory(""));
$("history-more").addEventListener("click", (event) => loadHistory(event.currentTarget.dataset.cursor));
$("actions-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const action = event.submitter?.value ?? "retry";
  const note = $("actions-note");
  const answered = (mood, words) => { note.dataset.mood = mood; text(note, words); };
  show(note, true);
  answered("", "Asking … a run in a bucket looks every ten seconds.");
  try {
    const why = action === "retry" ? "" : `?why=${encodeURIComponent($("action-why").value.trim())}`;
    const path = `/api/runs/${encodeURIComponent(state.run)}/${action}${why}`;
    const answer = await ask(path, { method: "POST", secret: $("action-secret").value.trim() });
    answered("good", action === "retry" ? `${answer.done}: ${number(answer.count)}` : answer.done);
  } catch (problem) {
    answered("bad", problem instanceof Refused && problem.status === 401
      ? "That is not the secret for actions: it is another than the one for looking, and was printed beside it."
      : problem.message);
  }
});
for (const what of Object.keys(state.found)) {
  let timer;
  $(`${what}-search`).addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, SEARCH_AFTER_MS, what);
  });
}
for (const name of Object.keys(FEW)) {
  $(`${name}-more`).addEventListener("click", () => {
    if (!expanded.delete(name)) expanded.add(name);
    drawRun();
    if (state.job) drawItems();
  });
}
setInterval(drawAges, 1000);
begin();
