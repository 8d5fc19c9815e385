// The page at /: shows /stats each second, and compares texts through /v1/embeddings. It must not know how either is made.
"use strict";

const MIB = 1024 * 1024;
const N_POINTS = 120;
const speeds = [];
let key = sessionStorage.getItem("key") || "";

const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function size(bytes) {
  return bytes >= 1024 * MIB ? `${(bytes / (1024 * MIB)).toFixed(2)} GiB` : `${Math.round(bytes / MIB)} MiB`;
}

async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? { headers }
    : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  if (response.status === 401) $("key-form").hidden = false;
  const content = await response.json();
  if (!response.ok) throw new Error(content.error?.message || content.error || response.statusText);
  $("key-form").hidden = true;
  return content;
}

// Models

function showModels(models) {
  const focused = document.activeElement?.dataset?.model;
  $("models").replaceChildren(...models.map(showModel));
  if (focused) document.querySelector(`button[data-model="${CSS.escape(focused)}"]`)?.focus();
  const select = $("model");
  const names = models.map((model) => model.name);
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
}

function showModel(model) {
  const node = make("article", "model");
  const head = make("div", "model-head");
  head.append(make("strong", "", model.quant ? `${model.name} ${model.quant}` : model.name));
  const isLoaded = model.state === "loaded";
  const button = make("button", "quiet", isLoaded ? "Unload" : "Load");
  button.dataset.model = model.name;
  button.disabled = model.state === "loading";
  button.addEventListener("click", async () => {
    button.disabled = true;
    await ask(isLoaded ? "/unload" : "/load", { model: model.name }).catch(() => {});
    await look();
  });
  head.append(button);
  node.append(head, make("p", "hint", stateWords(model)));
  if (model.trouble) node.append(make("p", "hint trouble", model.trouble));
  if (model.parts) node.append(...memoryBar(model));
  return node;
}

function stateWords(model) {
  if (model.state === "loading") {
    return model.n_total ? `fetching: ${size(model.n_done)} of ${size(model.n_total)}` : "loading";
  }
  if (model.state !== "loaded") return "not in memory; loaded when it is asked for";
  const stays = model.expires_in_s === null || model.n_active ? "" : `, stays ${Math.ceil(model.expires_in_s)} s more if idle`;
  return `${model.device}, ${model.n_embd} components, texts of ${model.max_tokens.toLocaleString("en")} tokens${stays}`;
}

function memoryBar(model) {
  const colours = { weights: "c0", "KV cache": "c1", buffers: "c2", program: "c3" };
  const bar = make("div", "bar");
  bar.setAttribute("role", "img");
  const legend = make("ul", "legend");
  const whole = model.parts.reduce((sum, part) => sum + part.bytes, 0);
  const room = Math.max(whole, model.available_bytes);
  // Of a large machine the model is a sliver: then the bar shows the parts of the model alone.
  const isSliver = whole < room / 8;
  const total = isSliver ? whole : room;
  for (const part of model.parts) {
    const piece = make("span", colours[part.part]);
    piece.style.width = `${(100 * part.bytes) / total}%`;
    piece.title = `${part.part}: ${size(part.bytes)}`;
    bar.append(piece);
    const item = make("li");
    item.append(make("span", `swatch ${colours[part.part]}`), make("span", "", `${part.part}, ${part.where}`), make("span", "size", size(part.bytes)));
    legend.append(item);
  }
  const sum = make("li");
  sum.append(make("span", "swatch free"), make("span", "", "planned, of what may be used"), make("span", "size", `${size(model.required_bytes)} of ${size(model.available_bytes)}`));
  legend.append(sum);
  if (model.state === "loaded") {
    const real = make("li");
    real.append(make("span", "swatch"), make("span", "", "its process holds now"), make("span", "size", size(model.worker_bytes)));
    legend.append(real);
  }
  bar.setAttribute("aria-label", `memory by part, ${size(whole)} in all`);
  return [bar, legend];
}

// Now

function showNow(stats) {
  $("status-words").textContent = stats.reason ? `${stats.status}: ${stats.reason}` : stats.status;
  document.querySelector("#status .dot").className = `dot ${stats.status}`;
  $("tokens-per-s").textContent = Math.round(stats.speed.tokens_per_s).toLocaleString("en");
  $("texts-per-s").textContent = stats.speed.texts_per_s.toLocaleString("en");
  $("queue").textContent = stats.queue.requests.toLocaleString("en");
  $("memory").textContent = size(stats.models.reduce((sum, model) => sum + model.worker_bytes, stats.server_bytes));
  speeds.push(stats.speed.tokens_per_s);
  if (speeds.length > N_POINTS) speeds.shift();
  const top = Math.max(1, ...speeds);
  const offset = N_POINTS - speeds.length;
  const points = speeds.map((speed, index) => `${offset + index} ${(29 - (27 * speed) / top).toFixed(2)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  document.querySelector("#speed .line").setAttribute("d", line);
  document.querySelector("#speed .area").setAttribute("d", line ? `${line}L${N_POINTS - 1} 30L${offset} 30Z` : "");
}

async function look() {
  try {
    const stats = await ask("/stats");
    showModels(stats.models);
    showNow(stats);
  } catch (error) {
    $("status-words").textContent = error instanceof TypeError ? "the server is not there" : error.message;
    document.querySelector("#status .dot").className = "dot degraded";
  }
}

// Try it

async function compare(event) {
  event.preventDefault();
  const texts = $("texts").value.split("\n").map((text) => text.trim()).filter(Boolean);
  const button = event.target.querySelector("button");
  if (!texts.length) return;
  button.disabled = true;
  $("took").textContent = "";
  const begun = performance.now();
  try {
    const reply = await ask("/v1/embeddings", { input: texts, model: $("model").value || undefined, encoding_format: "float" });
    const took = performance.now() - begun;
    showHeat(texts, reply.data.map((item) => item.embedding));
    $("took").textContent = `${texts.length} texts, ${reply.usage.total_tokens} tokens, ${took.toFixed(0)} ms`;
  } catch (error) {
    $("took").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

function showHeat(texts, rows) {
  const cosine = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
  const table = make("table", "heat");
  const head = table.createTHead().insertRow();
  head.append(make("th"));
  texts.forEach((_, index) => {
    const cell = make("th", "", String(index + 1));
    cell.scope = "col";
    head.append(cell);
  });
  const body = table.createTBody();
  texts.forEach((text, row) => {
    const line = body.insertRow();
    const name = make("th");
    name.scope = "row";
    name.append(make("span", "text", `${row + 1}  ${text}`));
    name.title = text;
    line.append(name);
    texts.forEach((other, column) => {
      const value = cosine(rows[row], rows[column]);
      const cell = make("td", "", value.toFixed(2));
      const strength = Math.min(1, Math.max(0, value));
      cell.style.backgroundColor = `rgb(var(--heat) / ${strength.toFixed(3)})`;
      if (strength > 0.7) cell.style.color = "#fff";
      cell.title = `${text}\n${other}`;
      line.append(cell);
    });
  });
  $("heat").replaceChildren(table);
  $("heat").hidden = $("scale").hidden = false;
}

$("try").addEventListener("submit", compare);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("key", key);
  look();
});
for (const [id, path] of [["openai", "/v1"], ["ollama", ""], ["tei", ""]]) $(id).textContent = location.origin + path;
look();
setInterval(look, 1000);
