"use strict";
// Whatever comes from data is put there as text: this file writes no markup.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((one) => one !== null));
  return element;
}

// Tables: headings sort, arrow keys move, Enter or a click shows where a number comes from.
function key(cell) {
  const button = cell.querySelector("button");
  const known = button && data.cells[button.id];
  if (known && known.v !== undefined) return known.v;
  return (button ? button : cell).textContent.trim();
}

function sort(heading) {
  const row = heading.parentElement, table = row.closest("table"), place = [...row.cells].indexOf(heading);
  const direction = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
  for (const other of row.cells) other.setAttribute("aria-sort", other === heading ? direction : "none");
  const sign = direction === "ascending" ? 1 : -1, body = table.tBodies[0];
  const rows = [...body.rows].map((one) => [key(one.cells[place]), one]);
  rows.sort(([a], [b]) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  });
  body.append(...rows.map(([, one]) => one));
  reachable(table);
}

function reachable(table, chosen) {
  const cells = [...table.querySelectorAll("td button")];
  cells.forEach((one) => { one.tabIndex = -1; });
  const first = chosen || cells[0];
  if (first) first.tabIndex = 0;
}

function move(button, name) {
  const cell = button.parentElement, row = cell.parentElement, body = row.parentElement;
  const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[name];
  let line = [...body.rows].indexOf(row) + down, place = cell.cellIndex + right;
  while (body.rows[line] && body.rows[line].cells[place]) {
    const next = body.rows[line].cells[place].querySelector("button");
    if (next) { reachable(body.closest("table"), next); next.focus(); return; }
    line += down; place += right;
  }
}

function show(button) {
  const cell = button.parentElement, table = cell.closest("table"), row = cell.parentElement;
  const column = table.tHead.rows[0].cells[cell.cellIndex].textContent;
  const known = data.cells[button.id], source = data.sources[known.s], list = find("cell").querySelector("dl");
  find("cell-title").textContent = `${table.caption.textContent}: ${row.cells[0].textContent}, ${column}`;
  list.replaceChildren();
  const tell = (name, value, code) => {
    if (value === undefined || value === null || value === "") return;
    list.append(make("dt", {}, name), make("dd", {}, code ? make("code", {}, String(value)) : String(value)));
  };
  tell("value", known.v === undefined ? button.textContent : known.v);
  if (known.low !== undefined) tell("95 % interval", `${known.low} to ${known.high}`);
  if (known.t) tell("t interval over seeds", `${known.t[0]} to ${known.t[1]} (sd ${known.sd})`);
  if (known.seeds) tell("training seeds", Object.entries(known.seeds).map(([seed, value]) => `${seed}: ${value}`).join(", "));
  if (known.n !== undefined) tell("n", known.failed === undefined ? known.n : `${known.n}, of which failed ${known.failed}`);
  tell("source", source.file, true);
  tell("code", source.code.join(", "), true);
  tell("commit", source.commit || data.commit, true);
  tell("remade by", source.command, true);
  const more = find("cell").querySelector(".more");
  more.replaceChildren();
  if (known.at) {
    const link = make("a", { href: `#${known.at}` }, "Its samples");
    link.addEventListener("click", () => find("cell").close());
    more.append(link);
  }
  if (known.page) more.append(make("a", { href: known.page }, "That profile's page, with its samples"));
  find("cell").showModal();
}

for (const table of document.querySelectorAll("table.cells")) {
  reachable(table);
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("sort" in button.dataset) sort(button.parentElement);
    else { reachable(table, button); show(button); }
  });
  table.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow") && event.target.matches("td button")) {
      event.preventDefault();
      move(event.target, event.key);
    }
  });
}

// Samples.
function fill(select, choices) {
  select.replaceChildren(...choices.map(([value, text]) => make("option", { value }, text)));
}

function said(place) {
  const parts = data.texts[place].split(/(<[^<>\s]{1,60}>)/);
  return make("div", { class: "said" }, ...parts.map((part) => {
    if (!/^<[^<>\s]{1,60}>$/.test(part)) return part;
    return make("span", { class: /THINKING/.test(part) ? "thought" : "tag" }, part);
  }));
}

function picture(place, name) {
  if (place === null) return make("p", { class: "note" }, "(its image cannot be shown)");
  const image = make("img", { src: data.images[place], alt: name });
  image.addEventListener("load", () => image.classList.toggle("smooth", image.naturalWidth > 144));
  return image;
}

const mark = (score) => make("span", { class: score >= 0.5 ? "right" : "wrong" }, `${score >= 0.5 ? "✓" : "✗"} ${Number(score.toFixed(2))}`);

function grid(headings, rows) {
  const head = make("tr", {}, ...headings.map((one) => make("th", { scope: "col" }, one)));
  const lines = rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((one) => make("td", {}, one))));
  return make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}

function scores(values) {
  const found = document.createDocumentFragment();
  values.forEach((one, place) => found.append(place ? " " : "", mark(one)));
  return found;
}

function question(one, protocol) {
  const options = Object.entries(one.options).map(([letter, text]) => make("li", {}, `${letter}. ${text}`));
  const rows = data.variants.map((variant) => {
    const [text, decoded, thinking, values, failed] = one.answers[protocol][variant];
    const tokens = thinking ? `${decoded}, ${thinking} thinking` : String(decoded);
    return [variant, said(text), tokens, failed ? "failed" : scores(values)];
  });
  const name = `${one.benchmark} ${one.doc}`;
  return make("article", {},
    make("header", {}, picture(one.image, `Image of ${name}`), make("div", {},
      make("h3", {}, `${name}, ${protocol}`), make("div", { class: "asked" }, one.question),
      options.length ? make("ul", { class: "options" }, ...options) : null,
      make("div", {}, "Right: ", make("b", {}, one.answer)))),
    grid(["variant", "answer", "tokens", "score"], rows));
}

function turn(one, chosen) {
  const section = data.reconstructions[chosen], rebuilt = one.rebuilt[chosen] || {};
  const rows = data.controls.filter((control) => rebuilt[control]).map((control) => {
    const [text, nll, grade] = rebuilt[control];
    return [control, said(text), nll, grade === null ? "–" : grade];
  });
  return make("article", {},
    make("header", {}, picture(one.image, `Image of ${one.id}`), make("div", {},
      make("h3", {}, `${one.id}, ${section}`), make("div", { class: "asked" }, one.question))),
    make("p", {}, `True ${section}: `, make("b", {}, data.texts[one.sections[section]])),
    grid(["state", "rebuilt", "nats", "grade"], rows));
}

const SHOWN = 6;
function browser(form, names, chosen, draw) {
  let page = 0, found = [];
  const list = find(`${names}-list`), pager = find(`${names}-pager`);
  const previous = make("button", { type: "button" }, "Previous"), next = make("button", { type: "button" }, "Next"), where = make("span", {});
  pager.append(previous, where, next);
  const render = () => {
    const pages = Math.max(1, Math.ceil(found.length / SHOWN));
    page = Math.min(page, pages - 1);
    list.replaceChildren(...found.slice(page * SHOWN, (page + 1) * SHOWN).map(draw));
    where.textContent = `${page + 1} of ${pages}`;
    previous.disabled = page === 0; next.disabled = page >= pages - 1;
  };
  const update = () => {
    const [matching, total] = chosen();
    found = matching; page = 0;
    find(`${names}-count`).textContent = `${found.length} of the ${total} shown here`;
    render();
  };
  previous.addEventListener("click", () => { page -= 1; render(); list.scrollIntoView(); });
  next.addEventListener("click", () => { page += 1; render(); list.scrollIntoView(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", update);
  return update;
}

const asked = find("question-filters"), at = asked.elements;
const outcomes = [["any", "anything"], ["right", "right"], ["wrong", "wrong"], ["failed", "failed"]];
const same = (names) => names.map((one) => [one, one]);
fill(at.protocol, same(data.protocols));
fill(at.benchmark, [["", "all"], ...same(data.benchmarks)]);
for (const side of ["a", "b"]) { fill(at[side], same(data.variants)); fill(at[`${side}-is`], outcomes); }
const [one, other] = ["heima", "text-cot"].map((name) => (data.variants.includes(name) ? name : data.variants[0]));
at.a.value = one; at.b.value = other;

const holds = (answer, outcome) => outcome === "any" || (outcome === "failed" ? answer[4] === 1 : (answer[3][0] >= 0.5) === (outcome === "right"));
const updateQuestions = browser(asked, "question", () => {
  const text = at.text.value.toLowerCase(), protocol = at.protocol.value;
  const there = data.questions.filter((q) => q.answers[protocol] && (!at.benchmark.value || q.benchmark === at.benchmark.value));
  return [there.filter((q) => {
    if (at.doc.value !== "" && q.doc !== Number(at.doc.value)) return false;
    const answers = q.answers[protocol];
    if (!["a", "b"].every((side) => holds(answers[at[side].value], at[`${side}-is`].value))) return false;
    return !text || [q.question, q.answer, ...Object.values(answers).map((answer) => data.texts[answer[0]])].some((said) => said.toLowerCase().includes(text));
  }), there.length];
}, (q) => question(q, at.protocol.value));
for (const [label, a, b] of [
  [`${one} wrong, ${other} right`, "wrong", "right"], [`${one} right, ${other} wrong`, "right", "wrong"],
  ["both wrong", "wrong", "wrong"], ["all", "any", "any"],
]) {
  const button = make("button", { type: "button" }, label);
  button.addEventListener("click", () => { at.a.value = one; at.b.value = other; at["a-is"].value = a; at["b-is"].value = b; updateQuestions(); });
  asked.querySelector(".presets").append(button);
}

const rebuilding = find("turn-filters"), of = rebuilding.elements;
fill(of.reconstruction, same(Object.keys(data.reconstructions)));
fill(of.control, same(data.controls.filter((control) => control !== "own")));
fill(of.is, [["any", "all"], ["likelier", "own state likelier"], ["less", "own state less likely"], ["better", "own grade better"], ["worse", "own grade worse"]]);
const updateTurns = browser(rebuilding, "turn", () => {
  const text = of.text.value.toLowerCase(), name = of.reconstruction.value;
  const there = data.turns.filter((one) => one.rebuilt[name]);
  return [there.filter((one) => {
    const own = one.rebuilt[name].own, compared = one.rebuilt[name][of.control.value], is = of.is.value;
    if (is !== "any") {
      if (!own || !compared) return false;
      const [a, b] = is === "likelier" || is === "less" ? [-own[1], -compared[1]] : [own[2], compared[2]];
      if (a === null || b === null || !(is === "likelier" || is === "better" ? a > b : a < b)) return false;
    }
    return !text || [one.question, one.id, ...Object.values(one.rebuilt[name]).map((said) => data.texts[said[0]])].some((said) => said.toLowerCase().includes(text));
  }), there.length];
}, (one) => turn(one, of.reconstruction.value));

// Addresses: #<cell>, #questions?benchmark=ai2d&doc=15&a=heima&a-is=wrong, #turns?reconstruction=caption
const browsers = { questions: [at, updateQuestions], turns: [of, updateTurns] };
function go() {
  const [place, query] = decodeURIComponent(location.hash.slice(1)).split("?");
  if (query !== undefined && browsers[place]) {
    const [fields, update] = browsers[place], wanted = new URLSearchParams(query);
    if (place === "questions") {
      for (const side of ["a", "b"]) at[`${side}-is`].value = "any";
      for (const name of ["benchmark", "doc", "text"]) at[name].value = "";
    }
    for (const [name, value] of wanted) {
      if (fields[name] && (!fields[name].options || [...fields[name].options].some((option) => option.value === value))) fields[name].value = value;
    }
    update();
    find(place).scrollIntoView();
    return;
  }
  const target = place && find(place);
  if (!target) return;
  for (let around = target.parentElement; around; around = around.parentElement) if (around.tagName === "DETAILS") around.open = true;
  if (data.cells[place]) {
    document.querySelectorAll("td.found").forEach((cell) => cell.classList.remove("found"));
    target.parentElement.classList.add("found");
    reachable(target.closest("table"), target);
    target.scrollIntoView({ block: "center" });
    target.focus({ preventScroll: true });
  }
}
window.addEventListener("hashchange", go);
updateQuestions(); updateTurns(); go();
})();
