// The page of octavo serve: figures every two seconds, the receipt, and two answers side by side. No library, nothing from elsewhere.
"use strict";

const EVERY = 2000, MINUTE = 60, OTHER = "another server…";
const $ = (id) => document.getElementById(id);
const history = [];              // answers of /v1/figures, of the last minute
let models = [], running = null; // what this server serves; the AbortController of the answers in the making

// -- talking to the server ------------------------------------------------------------------------------------------------------

function headers(more) {
  const key = sessionStorage.getItem("octavo-key");
  return { ...(key ? { Authorization: `Bearer ${key}` } : {}), ...more };
}

async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  if (answer.status === 401) $("key-form").hidden = false;
  if (!answer.ok) throw new Error(await problem(answer));
  return answer.json();
}

async function problem(answer) {
  try { return (await answer.json()).error.message; } catch { return `status ${answer.status}`; }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("octavo-key", $("key").value);
  $("key-form").hidden = true;
  begin();
});

// -- figures ----------------------------------------------------------------------------------------------------------------------

function total(value) {          // of a number, or of one for each label
  return typeof value === "number" ? value : Object.values(value ?? {}).reduce((sum, one) => sum + (one ?? 0), 0);
}

function quantile(name, share) { // of a histogram, over what came in the last minute
  const now = history.at(-1).metrics[name], before = history[0].metrics[name];
  if (!now) return null;
  const counts = now.counts.map((count, i) => count - (before && history.length > 1 ? before.counts[i] : 0));
  const all = counts.reduce((sum, one) => sum + one, 0);
  if (!all) return null;
  let below = 0;
  for (let i = 0; i < counts.length; i++) {
    if (below + counts[i] >= share * all && counts[i]) {
      if (i === now.bounds.length) return now.bounds[i - 1];
      const from = i ? now.bounds[i - 1] : 0;
      return from + (now.bounds[i] - from) * (share * all - below) / counts[i];
    }
    below += counts[i];
  }
  return null;
}

const seconds = (value) => value === null ? "–" : value < 1 ? `${(value * 1000).toPrecision(3)} ms` : `${value.toPrecision(3)} s`;
const share = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`;
const bytes = (value) => value ? `${(value / 1e6).toFixed(0)} MB` : "–";

function perSecond(name, from = 0) {
  const first = history[Math.max(0, from)], last = history.at(-1);
  const passed = last.time - first.time;
  return passed > 0 ? Math.max(0, total(last.metrics[name]) - total(first.metrics[name])) / passed : 0;
}

function showFigures() {
  const { metrics } = history.at(-1);
  const queries = metrics.prefix_cache_queries, drift = metrics.quality_drift_ratio;
  const rows = {
    "Running": metrics.num_requests_running ?? 0,
    "Waiting": metrics.num_requests_waiting ?? 0,
    "Tokens per second": perSecond("generation_tokens", history.length - 3).toFixed(1),
    "Tokens generated": total(metrics.generation_tokens),
    "Answers ended": total(metrics.requests_finished),
    "Errors": total(metrics.request_errors),
    "First token, median": seconds(quantile("time_to_first_token_seconds", 0.5)),
    "First token, 95%": seconds(quantile("time_to_first_token_seconds", 0.95)),
    "Between tokens, median": seconds(quantile("inter_token_latency_seconds", 0.5)),
    "Between tokens, 95%": seconds(quantile("inter_token_latency_seconds", 0.95)),
    "Cache in use": share(metrics.kv_cache_usage_perc),
    "Prefix cache hits": queries ? share(metrics.prefix_cache_hits / queries) : "–",
    "Memory of the process": bytes(metrics.process_resident_memory_bytes),
    "Drift over the receipt": drift === undefined || drift === null ? "not checked" : `× ${drift.toPrecision(3)}`,
  };
  const list = $("figures");
  for (const [name, value] of Object.entries(rows)) {
    let cell = list.querySelector(`[data-name="${name}"]`);
    if (!cell) {
      const group = list.appendChild(document.createElement("div"));
      group.appendChild(document.createElement("dt")).textContent = name;
      cell = group.appendChild(document.createElement("dd"));
      cell.dataset.name = name;
    }
    cell.textContent = value;
  }
  const rates = history.slice(1).map((now, i) => {
    const before = history[i];
    return Math.max(0, (total(now.metrics.generation_tokens) - total(before.metrics.generation_tokens)) / (now.time - before.time));
  });
  const top = Math.max(1, ...rates), end = history.at(-1).time;
  const points = rates.map((rate, i) => `${300 - (end - history[i + 1].time) * 300 / MINUTE},${46 - 44 * rate / top}`);
  $("rate").querySelector("polyline").setAttribute("points", points.join(" "));
  $("rate-top").textContent = Math.max(0, ...rates).toFixed(1);
  showRuns(metrics);
}

function showRuns(metrics) {
  const weights = Object.entries(metrics.weight_bytes ?? {}).map(([what, size]) => {
    const [asked, runs, kernel] = what.split(" ");
    return `${asked} runs as ${runs} on ${kernel}, ${bytes(size)}`;
  });
  const policy = Object.keys(metrics.kernel_policy ?? {})[0]?.replace(/ ([^ ]*) ([^ ]*) (\d+)$/, "; $1, $2, $3 threads");
  $("runs").textContent = `Weights: ${weights.join("; ") || "–"}. Kernels: ${policy ?? "–"}. Key-value cache up to ${bytes(metrics.kv_cache_bytes)}.`;
}

async function refresh() {
  if (document.hidden) return;
  try {
    history.push(await get("v1/figures"));
    while (history.at(-1).time - history[0].time > MINUTE) history.shift();
    showFigures();
    const ready = history.at(-1).metrics.ready;
    if (ready && models.length < 2) await begin();  // a second precision may still be loading
    else say(ready ? "Ready." : "The model is loading.");
  } catch (error) { say(`No figures: ${error.message}`); }
}

function say(text) { if ($("state").textContent !== text) $("state").textContent = text; }

// -- receipt ----------------------------------------------------------------------------------------------------------------------

async function showReceipt() {
  const known = await get("v1/quality");
  $("receipt").textContent = { off: "It was not asked for.", waiting: "It is not known yet.", measuring: "It is being measured." }[known.summary] ?? known.summary;
  const loss = known.receipt?.loss ?? {}, number = (value) => value === null || value === undefined ? "–" : value.toPrecision(4);
  const rows = [["KL divergence, nats per token", loss.kl && { ...loss.kl, value: loss.kl.mean }], ["Same first choice as the original", loss.top1_agreement],
    ["Perplexity over the original's", loss.perplexity_ratio]].filter(([, one]) => one);
  $("measured").hidden = !rows.length;
  $("measures").replaceChildren(...rows.map(([name, one]) => row("th", name, number(one.value), `${number(one.low)} to ${number(one.high)}`)));
  if (known.state === "measuring" || known.state === "waiting") setTimeout(() => showReceipt().catch(() => {}), 5 * EVERY);
}

function row(first, ...cells) {
  const line = document.createElement("tr");
  cells.forEach((text, i) => {
    const cell = line.appendChild(document.createElement(i ? "td" : first));
    if (!i && first === "th") cell.scope = "row";
    cell.textContent = text;
  });
  return line;
}

// -- playground -------------------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const found = (await get("v1/models")).data;
    say("Ready.");
    if (found.length === models.length) return;
    models = found;
    $("model").textContent = models.map((one) => `${one.id} (${one.quantization})`).join(", ");
    const names = models.map((one) => one.id);
    fill($("left"), names, names[0]);
    fill($("right"), ["nobody", ...names, OTHER], names[1] ?? "nobody");
    await showReceipt();
  } catch (error) { say(error.message); }
}

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
  select.dispatchEvent(new Event("change"));
}

$("right").addEventListener("change", () => {
  const other = $("right").value === OTHER;
  $("other-server").hidden = !other;
  $("url").required = other;
});

class Answer {                   // the tokens of one answer as they come: {text, p, top}
  constructor(side) {
    this.tokens = [];
    this.box = $(`${side}-answer`);
    this.text = this.box.querySelector(".text");
    this.speed = this.box.querySelector(".speed");
    this.decoder = new TextDecoder();
    this.text.replaceChildren();
    this.speed.textContent = "";
  }

  add(entry) {
    const text = entry.bytes ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
    this.tokens.push({ text, p: Math.exp(entry.logprob), top: entry.top_logprobs ?? [] });
    this.text.appendChild(document.createTextNode(text));
  }

  get whole() { return this.tokens.map((one) => one.text).join(""); }

  tokenAt(place) {               // index of the token that holds a character
    let end = 0;
    return this.tokens.findIndex((one) => (end += one.text.length) > place);
  }

  mark(index) {                  // show it again, with this token marked
    const parts = this.tokens.map((one) => one.text);
    const marked = document.createElement("mark");
    marked.textContent = parts[index] ?? "(ends here)";
    const after = document.createElement("span");
    after.className = "after";
    after.textContent = parts.slice(index + 1).join("");
    this.text.replaceChildren(parts.slice(0, index).join(""), marked, after);
  }
}

async function ask(answer, base, model, chat, signal) {
  const how = { model, stream: true, max_tokens: Number($("tokens").value), temperature: Number($("temperature").value), seed: Number($("seed").value) };
  const prompt = $("prompt").value;
  const body = chat ? { ...how, messages: [{ role: "user", content: prompt }], logprobs: true, top_logprobs: 3 } : { ...how, prompt, logprobs: 3 };
  const local = base === "", began = performance.now();
  const response = await fetch(`${base}${local ? "" : "/"}v1/${chat ? "chat/" : ""}completions`, {
    method: "POST", signal, body: JSON.stringify(body), headers: local ? headers({ "Content-Type": "application/json" }) : { "Content-Type": "application/json" },
  });
  if (!response.ok) throw new Error(await problem(response));
  let first = null;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    for (const entry of entries(event.choices?.[0])) {
      first ??= performance.now();
      answer.add(entry);
    }
    const count = answer.tokens.length, passed = (performance.now() - first) / 1000;
    if (count > 1) answer.speed.textContent = `${count} tokens, ${((count - 1) / passed).toFixed(1)} per second, the first after ${((first - began) / 1000).toFixed(2)} s`;
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function entries(choice) {       // tokens with their probabilities, of either API
  const found = choice?.logprobs;
  if (found?.content) return found.content;
  return (found?.tokens ?? []).map((token, i) => ({
    token, logprob: found.token_logprobs[i] ?? 0,
    top_logprobs: Object.entries(found.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ token: other, logprob })).sort((a, b) => b.logprob - a.logprob),
  }));
}

function compare(left, right, names) {
  const a = left.whole, b = right.whole;
  let place = 0;
  while (place < a.length && a[place] === b[place]) place++;
  if (place === a.length && place === b.length) return "Both answers are the same, token for token.";
  const [i, j] = [left, right].map((one) => { const at = one.tokenAt(place); return at < 0 ? one.tokens.length : at; });
  left.mark(i);
  right.mark(j);
  const tops = [left.tokens[i]?.top ?? [], right.tokens[j]?.top ?? []];
  const show = (one) => one ? `${JSON.stringify(one.token)} ${(100 * Math.exp(one.logprob)).toFixed(1)} %` : "–";
  names.forEach((name, k) => { $(k ? "choices-right" : "choices-left").textContent = name; });
  $("choices").querySelector("tbody").replaceChildren(...[0, 1, 2].map((k) => row("th", String(k + 1), show(tops[0][k]), show(tops[1][k]))));
  $("choices").hidden = false;
  const shown = [left.tokens[i], right.tokens[j]].map((one) => one ? `${JSON.stringify(one.text)} (${(100 * one.p).toFixed(0)} %)` : "the end");
  return `They part at token ${i + 1}: ${shown[0]} against ${shown[1]}.`;
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const mine = running = new AbortController();
  const second = $("right").value, names = [$("left").value, second];
  const chats = (name) => models.find((one) => one.id === name)?.chat ?? true;
  $("left-name").textContent = names[0];
  $("right-answer").hidden = second === "nobody";
  $("choices").hidden = true;
  $("verdict").className = "";
  $("verdict").textContent = "Answering…";
  $("stop").disabled = false;
  const left = new Answer("left"), right = new Answer("right");
  try {
    let there = null;            // the other server's model, asked for before any answer begins
    if (second === OTHER) {
      const base = $("url").value.replace(/\/+(v1\/?)?$/, "");
      const listed = await fetch(`${base}/v1/models`, { signal: mine.signal }).catch(() => {
        throw new Error(`${base} does not answer this page; start that server with --cors-origin ${location.origin}`);
      });
      if (!listed.ok) throw new Error(`${base}: ${await problem(listed)}`);
      there = { base, ...(await listed.json()).data[0] };
      names[1] = `${there.id} (${there.quantization ?? base})`;
    }
    const work = [ask(left, "", names[0], chats(names[0]), mine.signal)];
    if (there) work.push(ask(right, there.base, there.id, there.chat ?? true, mine.signal));
    else if (second !== "nobody") work.push(ask(right, "", second, chats(second), mine.signal));
    $("right-name").textContent = names[1];
    await Promise.all(work);
    $("verdict").textContent = second === "nobody" ? `Done: ${left.tokens.length} tokens.` : compare(left, right, names);
  } catch (error) {
    if (running === mine) {
      $("verdict").className = error.name === "AbortError" ? "" : "bad";
      $("verdict").textContent = error.name === "AbortError" ? "Stopped." : `It did not work: ${error.message}`;
    }
    mine.abort();
  } finally {
    if (running === mine) { $("stop").disabled = true; running = null; }
  }
});

$("stop").addEventListener("click", () => running?.abort());

refresh();
setInterval(refresh, EVERY);
document.addEventListener("visibilitychange", refresh);
