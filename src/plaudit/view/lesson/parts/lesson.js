// The page: sliders move numbers, numbers move plots.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const text = (value, digits = 3) => (Number.isFinite(value) ? (Math.abs(value) < 5e-13 ? 0 : value).toFixed(digits).replace("-", "−") : "–");

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A slider with its name and number; `moved` is called at once and whenever it moves. */
function sliders(place, names, moved) {
  const values = {};
  for (const [key, [label, low, high, step, start]] of Object.entries(names)) {
    const input = el("input", { type: "range", min: low, max: high, step, value: start, id: `${place}-${key}` });
    const shown = el("output", { for: input.id });
    const read = () => {
      values[key] = Number(input.value);
      shown.textContent = String(values[key]).replace("-", "−");
    };
    read();
    input.addEventListener("input", () => {
      read();
      moved(values);
    });
    $(place).append(el("label", { for: input.id, class: "slider" }, el("span", {}, label), input, shown));
  }
  moved(values);
  return values;
}

/** Show a number; the whole of it stands in data-value, for whoever checks it. */
function show(id, value, digits = 4) {
  $(id).textContent = text(value, digits);
  $(id).dataset.value = value;
}

/** Curves in a box; `curves` [{ points: [[x, y]], kind }], `marks` [{ x, y, kind }], `lines` [{ x }]. */
function plot(id, { curves = [], marks = [], lines = [], x, y, xlabel, ylabel }) {
  const W = 520, H = 260, L = 46, B = 34, T = 12, R = 22;
  const all = curves.flatMap((curve) => curve.points);
  const [x0, x1] = x ?? [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = y ?? [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (y0 === y1) [y0, y1] = [y0 - 1, y1 + 1];
  const px = (v) => L + ((W - L - R) * (v - x0)) / (x1 - x0 || 1);
  const py = (v) => H - B - ((H - B - T) * (v - y0)) / (y1 - y0);
  const node = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${ylabel} over ${xlabel}` });
  for (let i = 0; i <= 4; i += 1) {
    const vx = x0 + ((x1 - x0) * i) / 4, vy = y0 + ((y1 - y0) * i) / 4;
    node.append(svg("line", { x1: L, x2: W - R, y1: py(vy), y2: py(vy), class: "grid" }));
    node.append(svg("text", { x: L - 6, y: py(vy) + 4, "text-anchor": "end" }, text(vy, Math.abs(y1 - y0) < 3 ? 2 : 1)));
    node.append(svg("text", { x: px(vx), y: H - B + 17, "text-anchor": "middle" }, text(vx, Math.abs(x1 - x0) < 3 ? 2 : Number.isInteger((x1 - x0) / 4) ? 0 : 1)));
  }
  for (const line of lines) node.append(svg("line", { x1: px(line.x), x2: px(line.x), y1: T, y2: H - B, class: "edge" }));
  for (const curve of curves) node.append(svg("polyline", { points: curve.points.map(([a, b]) => `${px(a).toFixed(1)},${py(b).toFixed(1)}`).join(" "), class: `curve ${curve.kind ?? ""}` }));
  for (const mark of marks) node.append(svg("circle", { cx: px(mark.x), cy: py(Math.min(y1, Math.max(y0, mark.y))), r: 6, class: `mark ${mark.kind ?? ""}` }));
  node.append(svg("text", { x: (L + W - R) / 2, y: H - 2, "text-anchor": "middle" }, xlabel));
  $(id).replaceChildren(node);
}

/** Bars around zero, one a token. */
function bars(id, values, names, label) {
  const most = Math.max(1e-9, ...values.map(Math.abs));
  $(id).replaceChildren(el("div", { class: values.length > 8 ? "bars many" : "bars", role: "img", "aria-label": `${label}: ${values.map((v) => text(v, 2)).join(", ")}` }, ...values.map((value, t) => {
    const bar = el("span", { class: value < 0 ? "bar neg" : "bar pos" });
    bar.style.height = `${(48 * Math.abs(value)) / most}%`;
    return el("span", { class: "column", title: `${names[t]}: ${text(value, 4)}` }, el("span", { class: "field" }, bar), el("span", { class: "name" }, names[t]));
  })));
}

// --- 1. the crossroads ---
sliders("cross", { value: ["value V", -5, 5, 0.1, 1.5], reward: ["reward R", -5, 8, 0.1, 5], gamma: ["discount γ", 0, 1, 0.01, 0.9], next: ["value of the next state (0: the reply has ended)", -5, 5, 0.1, 0], old: ["π_old", 0.05, 0.95, 0.01, 0.6], now: ["π", 0.05, 0.95, 0.01, 0.75], range: ["clip range ε", 0.05, 0.5, 0.01, 0.2] }, (v) => {
  const advantage = v.reward + v.gamma * v.next - v.value;
  const ratio = v.now / v.old;
  const { unclipped, clipped, l_clip } = maths.clip(ratio, advantage, v.range);
  const cut = l_clip !== unclipped;
  show("advantage", advantage);
  show("ratio", ratio);
  show("unclipped", unclipped);
  show("clipped", clipped);
  show("l_clip", l_clip);
  $("cross-all").classList.toggle("biting", cut);
  $("cross-says").textContent = cut
    ? `The clip bites: L_CLIP no longer depends on π, so its gradient is 0. The token has ${advantage > 0 ? "become likely" : "become unlikely"} enough.`
    : advantage === 0 ? "Nothing to learn: it went exactly as expected." : `The gradient is Â = ${text(advantage, 2)} times that of r: the token is made ${advantage > 0 ? "more" : "less"} likely.`;
  const at = Array.from({ length: 81 }, (_, i) => (i * 2.5) / 80);
  const top = Math.max(2.5 * Math.abs(advantage), 0.5);
  plot("cross-plot", { curves: [{ points: at.map((r) => [r, r * advantage]), kind: "thin" }, { points: at.map((r) => [r, maths.clip(r, advantage, v.range).l_clip]), kind: cut ? "hot" : "" }], marks: [{ x: ratio, y: l_clip, kind: cut ? "hot" : "" }], lines: [{ x: 1 - v.range }, { x: 1 + v.range }], x: [0, 2.5], y: advantage >= 0 ? [0, top] : [-top, 0], xlabel: "ratio r", ylabel: "L_CLIP" });
});

// --- 2. and 3. a real reply ---
let reply = data.replies[0];
const choose = $("reply");
data.replies.forEach((one, index) => choose.append(el("option", { value: index }, `${index + 1}. ${one.prompt.slice(0, 60)}`)));
const again = [];
choose.addEventListener("change", () => {
  reply = data.replies[Number(choose.value)];
  again.forEach((draw) => draw());
});
const state = {};
function drawReply() {
  if (state.lam === undefined || state.beta === undefined) return;
  $("reply-prompt").textContent = reply.prompt;
  $("reply-text").replaceChildren(...reply.tokens.map((token) => el("span", { class: "token" }, token)));
  const rewards = maths.rewards(reply.score, reply.kl, state.beta);
  const advantages = maths.gae(rewards, reply.values, state.gamma, state.lam);
  bars("gae-bars", advantages, reply.tokens, "advantages");
  bars("kl-bars", rewards, reply.tokens, "rewards");
  show("gae-first", advantages[0]);
  show("gae-last", advantages.at(-1));
  $("gae-first").dataset.all = JSON.stringify(advantages);
  show("kl-sum", sum(reply.kl));
  show("kl-cost", state.beta * sum(reply.kl));
  show("kl-total", sum(rewards));
  $("kl-total").dataset.all = JSON.stringify(rewards);
  $("gae-says").textContent = state.lam === 0 ? "λ = 0: each token is judged by the critic one step later alone (TD error). Little noise, and wrong wherever the critic is." : state.lam === 1 ? "λ = 1: each token is judged by everything that came after it (Monte Carlo). Right on average, and noisy." : "Between the two: errors of the critic and noise of what followed are traded.";
}
again.push(drawReply);
sliders("gae", { lam: ["λ", 0, 1, 0.01, 0.95], gamma: ["γ", 0.5, 1, 0.01, 1] }, (v) => (Object.assign(state, v), drawReply()));
sliders("kl", { beta: ["KL coefficient β", 0, 1, 0.01, 0.05] }, (v) => (Object.assign(state, v), drawReply()));
sliders("klk", { p: ["π of one token", 0.01, 0.99, 0.01, 0.6], q: ["π_ref of it", 0.01, 0.99, 0.01, 0.4] }, ({ p, q }) => {
  const { k1, k2, k3 } = maths.kl(Math.log(p), Math.log(q));
  show("k1", k1);
  show("k2", k2);
  show("k3", k3);
});

// --- 4. the objective, 5. entropy ---
sliders("obj", { l_clip: ["L_CLIP", -2, 5, 0.1, 4.2], value: ["value V", -2, 6, 0.1, 1.5], target: ["return", -2, 6, 0.1, 5], entropy: ["entropy S", 0, 4, 0.1, 1], c1: ["c1", 0, 1, 0.01, 0.1], c2: ["c2", 0, 0.1, 0.001, 0.01] }, (v) => {
  const found = maths.objective(v.l_clip, v.value, v.target, v.entropy, v.c1, v.c2);
  show("l_vf", found.l_vf);
  show("objective", found.objective);
  show("loss", found.loss);
});
sliders("ent", { a: ["logit of “tea”", -3, 3, 0.1, 2], b: ["logit of “coffee”", -3, 3, 0.1, 1], c: ["logit of “gravel”", -3, 3, 0.1, -1], temperature: ["temperature", 0.1, 3, 0.1, 1] }, (v) => {
  const { probabilities, entropy } = maths.entropy([v.a, v.b, v.c], v.temperature);
  bars("ent-bars", probabilities, ["tea", "coffee", "gravel"], "probabilities");
  show("entropy", entropy);
  show("perplexity", Math.exp(entropy));
});

// --- 6. whitening, 7. Bradley-Terry ---
sliders("white", Object.fromEntries([0.5, 1.5, 2, 6].map((start, i) => [`s${i}`, [`score ${i + 1}`, -5, 10, 0.1, start]])), (v) => {
  const found = maths.whiten(Object.values(v));
  bars("white-bars", found, ["1", "2", "3", "4"], "whitened scores");
  found.forEach((value, i) => show(`w${i}`, value));
});
sliders("bt", { w: ["score of the winner", -5, 5, 0.1, 1.2], l: ["score of the loser", -5, 5, 0.1, 0.4] }, ({ w, l }) => {
  const found = maths.bradleyTerry(w, l);
  show("bt-p", found.probability);
  show("bt-loss", found.loss);
});
sliders("rank", Object.fromEntries(["best", "second", "third", "worst"].map((name, i) => [`r${i}`, [`score of the ${name}`, -3, 3, 0.1, [1.5, 0.2, 0.6, -1][i]]])), (v) => {
  const { pairs, loss } = maths.ranking(Object.values(v));
  $("rank-pairs").replaceChildren(...pairs.map(({ i, j, probability, loss: one }) => el("tr", {}, el("th", { scope: "row" }, `${i + 1} before ${j + 1}`), el("td", {}, text(probability)), el("td", {}, text(one)))));
  show("rank-loss", loss);
});

// --- 8. LoRA, 9. reward hacking ---
sliders("lora", { rank: ["rank r", 1, 3, 1, 1], alpha: ["α", 1, 8, 1, 2], move: ["one number of B", -2, 2, 0.1, 0.5] }, ({ rank, alpha, move }) => {
  const b = [[move, 1, 0.3], [-1, 0.5, 0], [0.2, -0.4, 1]].map((row) => row.slice(0, rank));
  const a = [[1, 0, -0.5], [0.2, 1, 0], [-1, 0.4, 0.6]].slice(0, rank);
  const delta = maths.lora(b, a, alpha);
  $("lora-delta").replaceChildren(...delta.map((row) => el("tr", {}, ...row.map((x) => el("td", {}, text(x))))));
  $("lora-delta").dataset.all = JSON.stringify(delta);
  const full = 576 * 576;
  $("lora-says").textContent = `Of a layer of 576 × 576 = ${full.toLocaleString("en")} weights it learns ${(rank * (576 + 576)).toLocaleString("en")}, ${text((100 * rank * 1152) / full, 2)} %.`;
});
sliders("hack", { alpha: ["how fast the score rises, α", 0.2, 2, 0.05, 1], proxy: ["β of the proxy", 0, 0.6, 0.01, 0.15], gold: ["β of what people think", 0.05, 1, 0.01, 0.45], d: ["where you stop, √KL", 0, 6, 0.05, 4] }, (v) => {
  const at = Array.from({ length: 121 }, (_, i) => i / 20);
  const top = Math.exp(v.alpha / v.gold - 1);
  show("hack-proxy-now", maths.gaming(v.d, v.alpha, v.proxy));
  show("hack-gold-now", maths.gaming(v.d, v.alpha, v.gold));
  show("hack-top", top, 2);
  plot("hack-plot", { curves: [{ points: at.map((d) => [d, maths.gaming(d, v.alpha, v.proxy)]), kind: "thin" }, { points: at.map((d) => [d, maths.gaming(d, v.alpha, v.gold)]) }], marks: [{ x: v.d, y: maths.gaming(v.d, v.alpha, v.gold), kind: v.d > top ? "hot" : "" }], lines: [{ x: Math.min(6, top) }], xlabel: "√KL", ylabel: "scores" });
  $("hack-says").textContent = v.d > top ? "Over-optimised: the proxy still rises, people like the replies less." : "Both rise: go on.";
});

// --- 10. break it ---
const NAMES = { right: "as it should be", no_kl: "β = 0", flipped_kl: "flipped KL", shifted_values: "value off by one", late_score: "score one token late" };
let metric = "kl";
let broken = "right";
function drawBroken() {
  const run = data.broken.runs[broken], right = data.broken.runs.right;
  const points = (one) => one.update.map((u, i) => [u, one[metric][i]]);
  plot("break-plot", { curves: [{ points: points(right), kind: "thin" }, ...(broken === "right" ? [] : [{ points: points(run), kind: "hot" }])], xlabel: "update", ylabel: metric });
  const told = run.doctor.map((one) => el("li", {}, el("strong", {}, `${one.level}: ${one.name}`), `: ${one.says}. To do: ${one.change}.`));
  $("break-doctor").replaceChildren(run.stopped ? el("p", {}, `The run stopped itself: ${run.stopped}`) : "", told.length ? el("ul", {}, ...told) : el("p", {}, "plaudit doctor: nothing found."));
  for (const button of document.querySelectorAll("[data-broken]")) button.setAttribute("aria-pressed", button.dataset.broken === broken);
  for (const button of document.querySelectorAll("[data-metric]")) button.setAttribute("aria-pressed", button.dataset.metric === metric);
}
for (const [key, label] of Object.entries(NAMES)) $("break-buttons").append(Object.assign(el("button", { type: "button", "data-broken": key }, label), { onclick: () => ((broken = key), drawBroken()) }));
for (const key of ["kl", "score", "entropy", "length"]) $("break-metrics").append(Object.assign(el("button", { type: "button", "data-metric": key }, key), { onclick: () => ((metric = key), drawBroken()) }));
drawBroken();

// --- ten questions ---
data.questions.forEach(({ ask, answers, right, why }, number) => {
  const said = el("p", { class: "why", role: "status" });
  const box = el("fieldset", {}, el("legend", {}, `${number + 1}. ${ask}`), ...answers.map((answer, index) => {
    const input = el("input", { type: "radio", name: `q${number}`, value: index });
    input.addEventListener("change", () => {
      said.textContent = `${index === right ? "Right." : "Not quite."} ${why}`;
      said.className = index === right ? "why good" : "why bad";
    });
    return el("label", {}, input, answer);
  }), said);
  $("questions").append(box);
});
