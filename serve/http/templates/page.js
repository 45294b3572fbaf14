"use strict";
// Everything that comes from the server is put in as text, never as markup; the key goes into one header, nowhere else.
const EVERY = 2000, KEPT = 150, STORED = "neuron-guard-key";
const at = (id) => document.getElementById(id);
let key = sessionStorage.getItem(STORED) || "", timer = null, shown = null, history = [], asking = null;

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(`../${path}`, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const reason = body.error?.message || `The server answered ${response.status}.`;
  throw response.status === 401 ? new Refused(reason) : new Error(reason);
}

const node = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
};
const percent = (share) => `${Number((100 * share).toPrecision(3))}%`;
const whole = (count) => count.toLocaleString("en");
const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;

function list(id, pairs) {
  const parent = at(id);
  parent.replaceChildren();
  for (const [name, value] of pairs) {
    const box = id === "counts" ? node("div", undefined, parent) : parent;
    node("dt", name, box);
    node("dd", value, box);
  }
}

// Plots: inline SVG as wide as its place, drawn anew each time.
function canvas(id, height, label) {
  const place = at(id), width = Math.max(260, place.clientWidth);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }))
    svg.setAttribute(name, value);
  place.replaceChildren(svg);
  const draw = (name, kind, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    made.setAttribute("class", kind);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  return { width, draw };
}

function nothing(id, words) {
  at(id).replaceChildren(node("p", words));
  at(id).firstChild.className = "muted";
}

function lines(id, series, label) {
  const points = series[0].values.length;
  if (points < 2) return nothing(id, "Nothing to draw yet.");
  const height = 150, left = 52, foot = 22, { width, draw } = canvas(id, height, label);
  const most = Math.max(1, ...series.flatMap((one) => one.values));
  const x = (place) => left + ((width - left - 8) * place) / (points - 1);
  const y = (value) => 8 + (height - 8 - foot) * (1 - value / most);
  for (const share of [0, 0.5, 1]) {
    draw("line", share ? "grid" : "axis", { x1: left, x2: width - 8, y1: y(share * most), y2: y(share * most) });
    draw("text", "", { x: left - 8, y: y(share * most) + 4, "text-anchor": "end" }, whole(Number((share * most).toPrecision(3))));
  }
  series.forEach(({ name, values, kind }, place) => {
    draw("polyline", `line ${kind}`, { points: values.map((value, index) => `${x(index)},${y(value)}`).join(" ") });
    draw("line", `line ${kind}`, { x1: left + place * 120, x2: left + place * 120 + 16, y1: height - 7, y2: height - 7 });
    draw("text", "", { x: left + place * 120 + 22, y: height - 3 }, name);
  });
}

// One row a name: `marks(row, x, y, draw)` draws on a scale from 0 to 1.
function rows(id, items, label, marks, scale = percent) {
  if (!items.length) return nothing(id, "The spec's evidence has nothing to compare with.");
  const step = 44, top = 4, height = top + step * items.length + 18, { width, draw } = canvas(id, height, label);
  const x = (share) => 8 + (width - 16) * Math.min(Math.max(share, 0), 1);
  items.forEach((item, place) => {
    const y = top + step * place + 30;
    draw("text", "name", { x: 8, y: y - 14 }, item.name);
    draw("text", "", { x: width - 8, y: y - 14, "text-anchor": "end" }, item.said);
    draw("line", "axis", { x1: x(0), x2: x(1), y1: y, y2: y });
    marks(item, x, y, draw);
  });
  for (const share of [0, 0.5, 1])
    draw("text", "", { x: x(share), y: height - 4, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, scale(share));
}

function bars(id, tests) {
  if (!tests.length) return nothing(id, "No self-test has ended yet.");
  const height = 110, left = 52, { width, draw } = canvas(id, height, `${tests.length} self-tests`);
  const most = Math.max(0.001, ...tests.map((test) => test.seconds || 0)), room = (width - left - 8) / tests.length;
  const y = (value) => 8 + (height - 16) * (1 - value / most);
  for (const share of [0, 1]) {
    draw("line", share ? "grid" : "axis", { x1: left, x2: width - 8, y1: y(share * most), y2: y(share * most) });
    draw("text", "", { x: left - 8, y: y(share * most) + 4, "text-anchor": "end" }, share ? `${most.toPrecision(2)} s` : "0");
  }
  tests.forEach((test, place) => {
    const x = left + room * (place + 0.5), half = Math.min(room / 2, 8) * 0.8;
    if (test.passed) draw("rect", "dot", { x: x - half, y: y(test.seconds), width: 2 * half, height: y(0) - y(test.seconds) });
    else draw("path", "cross", { d: `M${x - 5} ${y(0) - 12}l10 10m0-10l-10 10` });
  });
}

function drawLive() {
  const { guard } = shown;
  lines("plot-tokens", [
    { name: "guarded", values: history.map((point) => point.tokens), kind: "" },
    { name: "trigger active", values: history.map((point) => point.active), kind: "second" },
  ], "Tokens per second over time");
  bars("plot-tests", guard.self_tests);
  if (!guard.drift) return ["plot-rates", "plot-drift"].forEach((id) => nothing(id, "Not measured by this engine."));
  const rates = guard.drift.rates;
  rows("plot-rates", rates.map((rate) => ({
    ...rate, said: rate.mean === null ? "no request yet" : `${percent(rate.mean)}, expected ${percent(rate.low)} to ${percent(rate.high)}`,
  })), "Live rates against recorded ones", (rate, x, y, draw) => {
    draw("rect", "band", { x: x(rate.low), y: y - 7, width: Math.max(2, x(rate.high) - x(rate.low)), height: 14 });
    if (rate.mean !== null) draw("circle", rate.alarm ? "bad-dot" : "dot", { cx: x(rate.mean), cy: y, r: 6 });
  });
  rows("plot-drift", rates.map((rate) => ({ ...rate, said: rate.alarm ? "alarm" : percent(rate.evidence) })),
    "Evidence for drift", (rate, x, y, draw) => {
      draw("rect", rate.alarm ? "bad-dot" : "dot", { x: x(0), y: y - 5, width: x(rate.evidence) - x(0), height: 10 });
      draw("line", "limit", { x1: x(1), x2: x(1), y1: y - 10, y2: y + 10 });
    }, (share) => (share === 1 ? "alarm" : share ? "half way" : "none"));
}

function drawEvidence() {
  const { held_out: held } = shown.evidence;
  const shares = [["Harmful compliance", held.harmful_compliance], ["Benign refusal", held.benign_refusal],
    ["Garbled, harmful requests", held.harmful_garbled], ["Garbled, benign requests", held.benign_garbled]];
  rows("plot-evidence", shares.map(([name, both]) => ({ name, ...both, said: `${percent(both.off.value)} → ${percent(both.on.value)}` })),
    "Held-out evidence", ({ off, on }, x, y, draw) => {
      draw("line", "range off-range", { x1: x(off.low), x2: x(off.high), y1: y - 3, y2: y - 3 });
      draw("line", "range", { x1: x(on.low), x2: x(on.high), y1: y + 3, y2: y + 3 });
      draw("circle", "ring", { cx: x(off.value), cy: y, r: 7 });
      draw("circle", "dot", { cx: x(on.value), cy: y, r: 5 });
    });
}

function tellLive() {
  const { guard } = shown, { counts, drift } = guard;
  const doubt = !guard.in_force ? "Not in force" : guard.verdict !== "effective" ? "In force with a refuted spec"
    : drift?.alarm ? "In force, and traffic has drifted" : "";
  at("state").className = `verdict ${doubt ? "bad" : "good"}`;
  at("state-title").textContent = doubt || "In force";
  at("state-reason").textContent = guard.reason || `Spec ${guard.spec_digest.slice(0, 16)}…, verdict ${guard.verdict}.`;
  const clips = Object.entries(guard.clips);
  list("counts", [["Requests", whole(counts.requests || 0)], ["Tokens guarded", whole(guard.tokens)],
    ["With an active trigger", guard.tokens ? percent(guard.active_tokens / guard.tokens) : "–"],
    ...clips.map(([layer, count]) => [`Clips, layer ${layer}`, whole(count)])]);
  const alarms = (drift?.rates || []).filter((rate) => rate.alarm).map((rate) => rate.name);
  at("drift-words").textContent = !drift ? "This engine does not tell requests apart, so there is nothing to compare."
    : alarms.length
    ? `Traffic, or the model, is no longer what the spec was made on: ${alarms.join(", ")}. Calibrate anew.`
    : `Finished requests are compared with what the evidence recorded. The chance of ever seeing an alarm without a change is at most ${percent(drift.false_alarm)}.`;
  const last = guard.last_self_test;
  at("tests-words").textContent = `${whole(counts.self_tests_passed || 0)} passed, ${whole(counts.self_tests_failed || 0)} failed` +
    (last ? `; the last one ended ${new Date(1000 * last.at).toLocaleTimeString()}.` : ".");
}

function tellEvidence() {
  const { evidence } = shown, { verdict, trigger } = evidence;
  at("model").textContent = evidence.model;
  const reasons = verdict.reasons.length ? verdict.reasons
    : [`The fall in harmful compliance is larger than the margin of ${percent(verdict.margin)} (p ${verdict.p_value.toPrecision(2)}).`];
  at("reasons").replaceChildren(...reasons.map((reason) => node("li", reason)));
  list("facts", [["Spec", evidence.spec_digest], ["Verdict", verdict.outcome],
    ["Made on", `${evidence.identity.model_type}, ${evidence.identity.num_hidden_layers} layers of ${whole(evidence.identity.d_ff)} neurons`],
    ["Edits", evidence.layers.map(({ layer, neurons }) => `${plural(neurons, "neuron")} of layer ${layer}`).join(", ")],
    ["Trigger", trigger ? `layer ${trigger.layer}, at most ${percent(trigger.false_trigger_rate)} of benign requests` : "none: every token is edited"]]);
}

async function refresh() {
  clearTimeout(timer);
  try {
    const guard = await (await ask("guard")).json(), now = performance.now();
    const before = history.at(-1);
    const seconds = before ? (now - before.now) / 1000 : 1;
    history.push({ now, total: guard.tokens, triggered: guard.active_tokens,
      tokens: before ? Math.max(0, (guard.tokens - before.total) / seconds) : 0,
      active: before ? Math.max(0, (guard.active_tokens - before.triggered) / seconds) : 0 });
    history = history.slice(-KEPT);
    if (shown?.guard.spec_digest !== guard.spec_digest) {
      shown = { guard, evidence: await (await ask("guard/evidence")).json() };
      at("login").hidden = true;
      at("board").hidden = false;
      tellEvidence();
      drawEvidence();
    }
    shown.guard = guard;
    at("trouble").textContent = "";
    tellLive();
    drawLive();
  } catch (error) {
    if (error instanceof Refused) return lock(key ? error.message : "");
    at("trouble").textContent = `The server cannot be asked: ${error.message}`;
  }
  timer = setTimeout(refresh, EVERY);
}

function lock(reason) {
  clearTimeout(timer);
  asking?.abort();
  sessionStorage.removeItem(STORED);
  [key, shown, history] = ["", null, []];
  for (const id of ["answer", "answered", "model", "refused"]) at(id).textContent = "";
  at("refused").textContent = reason;
  at("board").hidden = true;
  at("login").hidden = false;
  at("key").focus();
}

async function tryPrompt() {
  asking = new AbortController();
  [at("ask").disabled, at("stop").hidden] = [true, false];
  [at("answer").textContent, at("answered").textContent] = ["", "Waiting…"];
  const started = performance.now();
  try {
    const response = await ask("v1/chat/completions", { method: "POST", signal: asking.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: shown.evidence.model, stream: true, stream_options: { include_usage: true },
        max_tokens: Number(at("tokens").value), messages: [{ role: "user", content: at("prompt").value }] }) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", last = {};
    for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts.filter((one) => one.startsWith("data: ") && one !== "data: [DONE]")) {
        const piece = JSON.parse(part.slice(6));
        if (piece.error) throw new Error(piece.error.message);
        at("answer").textContent += piece.choices[0]?.delta?.content ?? "";
        last = { ...last, ...(piece.usage && { usage: piece.usage }), mark: piece.system_fingerprint };
      }
    }
    const said = last.usage ? `${plural(last.usage.completion_tokens, "token")} in ` : "";
    at("answered").textContent = `${said}${((performance.now() - started) / 1000).toFixed(2)} s, answered under ${last.mark}.`;
  } catch (error) {
    if (error instanceof Refused) return lock(error.message);
    at("answered").textContent = error.name === "AbortError" ? "Stopped." : `No answer: ${error.message}`;
  } finally {
    [at("ask").disabled, at("stop").hidden] = [false, true];
  }
  refresh();
}

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  at("key").value = "";
  sessionStorage.setItem(STORED, key);
  refresh();
});
at("try").addEventListener("submit", (event) => { event.preventDefault(); tryPrompt(); });
at("stop").addEventListener("click", () => asking?.abort());
at("leave")?.addEventListener("click", () => lock(""));
addEventListener("resize", () => { if (shown) { drawLive(); drawEvidence(); } });
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : shown && refresh()));
if (key || !("locked" in document.body.dataset)) refresh();
else lock("");
