"use strict";
// The annotation page: keys, the rule about fluency 0, and saving. One save is under way at a time, in the order of the
// clicks, and is tried again until the server has it; leaving the page waits for it. A click has a name of its own, so
// that it counts once, however often it is sent.

const body = document.body.dataset;
const texts = JSON.parse(body.texts);
const form = document.querySelector("#ratings");
const find = (selector) => document.querySelector(selector);
const facets = form ? [...form.querySelectorAll(".facet")] : [];
const bound = ["helpfulness", "accuracy", "coherence"];

// Saving

const waiting = [];
let sending = null;
let refused = false;
let seconds = 0;
let since = document.hidden ? null : performance.now();

function tick() {
  const now = performance.now();
  if (since !== null) seconds += (now - since) / 1000;
  since = document.hidden ? null : now;
}

function save(field, value) {
  if (refused) return;
  const older = waiting.findIndex((one) => one.field === field);
  if (older >= 0) waiting.splice(older, 1);
  waiting.push({ field, value });
  sending ??= sendAll().finally(() => { sending = null; });
}

async function sendAll() {
  const slow = setTimeout(() => tell(texts.saving), 400);
  while (waiting.length) {
    tick();
    const one = { ...waiting.shift(), seconds: Math.round(seconds * 10) / 10, click: freshName() };
    seconds = 0;
    while (!(await send(one))) {
      tell(texts.not_saved, true);
      await new Promise((after) => setTimeout(after, 1500));
    }
  }
  clearTimeout(slow);
  if (!refused) tell(texts.saved);
}

const freshName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(36)).join("-");

async function send(one) {
  let answer;
  try {
    answer = await fetch(`/task/${body.task}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": body.csrf },
      body: JSON.stringify(one),
      keepalive: true,
    });
  } catch {
    return false;
  }
  if (answer.status >= 500 || answer.status === 429) return false;
  if (answer.ok) {
    const { done, total } = await answer.json();
    find("#progress").value = done;
    find("#progress-text").textContent = texts.progress.replace("{done}", done).replace("{total}", total);
  } else {
    refused = true;
    waiting.length = 0;
    tell(texts.refused, true);
  }
  return true;
}

function tell(text, trouble = false) {
  const place = find("#saved");
  place.classList.toggle("trouble", trouble);
  if (place.textContent !== text) place.textContent = text;
}

async function leave(go) {
  saveComment();
  saveAnswers();
  while (sending) await sending;
  if (!refused) go();
}

// Values and the rule

const valueOf = (facet) => facet.querySelector("input[type=radio]:checked")?.value ?? null;
const facetOf = (name) => facets.find((facet) => facet.dataset.facet === name);
const unset = () => facets.filter((facet) => !facet.disabled && valueOf(facet) === null);

function setValue(facet, value) {
  for (const radio of facet.querySelectorAll("input[type=radio]")) radio.checked = radio.value === value;
}

function saveFacet(facet) {
  const value = valueOf(facet);
  const why = facet.querySelector("[data-why]").value;
  save(facet.dataset.facet, value === "x" ? { cannot: why } : Number(value));
}

function applyRules() {
  const whole = find("#whole").checked;
  const fluency = facetOf("fluency");
  const broken = fluency !== undefined && valueOf(fluency) === "0" && !whole;
  const senseless = broken && find("#senseless").checked;
  for (const facet of facets) {
    const ruled = senseless && bound.includes(facet.dataset.facet);
    if (ruled && facet.dataset.own === undefined) {
      facet.dataset.own = valueOf(facet) ?? "";
      setValue(facet, "0");
    } else if (!ruled && facet.dataset.own !== undefined) {
      setValue(facet, facet.dataset.own);
      delete facet.dataset.own;
    }
    facet.classList.toggle("ruled", ruled);
    facet.disabled = ruled || whole || form.dataset.fixed !== undefined;
    facet.querySelector(".why").hidden = valueOf(facet) !== "x" || facet.disabled;
  }
  if (fluency) {
    find(".senseless").hidden = !broken;
    find("#rule span").hidden = !senseless;
  }
  find(".whole .why").hidden = !whole;
  mark();
}

function current() {
  const focused = document.activeElement?.closest?.(".facet");
  return focused && !focused.disabled ? focused : (unset()[0] ?? facets.find((facet) => !facet.disabled) ?? null);
}

function mark() {
  const now = current();
  for (const facet of facets) facet.classList.toggle("current", facet === now);
  if (!unset().length) find("#left").textContent = texts.complete;
  else if (find("#left").textContent) showLeft();
}

function showLeft() {
  const names = unset().map((facet) => facet.querySelector("legend").textContent);
  find("#left").textContent = `${texts.left} ${names.join(", ")}`;
}

// Moving

function focusOn(facet) {
  const radio = facet.querySelector("input[type=radio]:checked") ?? facet.querySelector("input[type=radio]");
  radio.focus({ preventScroll: true });
  facet.scrollIntoView({ block: "nearest" });
  mark();
}

function beside(facet, step) {
  const open = facets.filter((one) => !one.disabled || one === facet);
  return open[open.indexOf(facet) + step] ?? null;
}

function choose(value) {
  const facet = current();
  if (facet === null || !facet.querySelector(`input[value="${value}"]`)) return;
  setValue(facet, value);
  saveFacet(facet);
  applyRules();
  const next = beside(facet, 1) ?? unset()[0] ?? null;
  if (next) focusOn(next);
  else find("#next").focus();
}

function goOn() {
  const open = unset();
  if (!open.length || form.dataset.fixed !== undefined) return leave(() => location.assign(find("#next").href));
  focusOn(open[0]);
  showLeft();
}

// Comment

let commentTimer = null;

function saveComment() {
  if (commentTimer === null) return;
  clearTimeout(commentTimer);
  commentTimer = null;
  save("comment", find("#comment").value);
}

// Short answers: all of them are saved as one.

let answerTimer = null;

function saveAnswers() {
  if (answerTimer === null) return;
  clearTimeout(answerTimer);
  answerTimer = null;
  const fields = [...document.querySelectorAll("[data-answer]")];
  save("answers", Object.fromEntries(fields.map((one) => [one.dataset.answer, one.value])));
}

// Spans: places are counted in characters (code points) of the response, which holds nothing but its text.

const response = find("#response");
let spans = JSON.parse(find(".marking")?.dataset.spans ?? "[]");

function placeOf(node, offset) {
  const before = document.createRange();
  before.selectNodeContents(response);
  before.setEnd(node, offset);
  return [...before.toString()].length;
}

function markSelected(label) {
  const chosen = getSelection();
  const range = chosen.rangeCount ? chosen.getRangeAt(0) : null;
  if (!range || !response.contains(range.commonAncestorContainer)) return;
  const [start, end] = [placeOf(range.startContainer, range.startOffset), placeOf(range.endContainer, range.endOffset)];
  if (start === end) return;
  chosen.removeAllRanges();
  const apart = spans.filter((one) => one.end <= start || end <= one.start);
  keepSpans([...apart, { start, end, label }].sort((one, other) => one.start - other.start));
}

function keepSpans(kept) {
  spans = kept;
  save("spans", spans);
  showSpans();
}

function showSpans() {
  const letters = [...response.textContent], parts = [];
  const text = (start, end) => letters.slice(start, end).join("");
  let done = 0;
  for (const { start, end, label } of spans) {
    const mark = document.createElement("mark");
    mark.dataset.label = label;
    mark.textContent = text(start, end);
    parts.push(text(done, start), mark);
    done = end;
  }
  response.replaceChildren(...parts, text(done));
  find("#marks").replaceChildren(...spans.map((one) => {
    const line = document.createElement("li");
    const remove = madeButton(`${find(".marking").dataset.unmark} ×`, () => keepSpans(spans.filter((other) => other !== one)));
    const [label, marked] = ["small", "bdi"].map((tag) => document.createElement(tag));
    label.textContent = find(`[data-mark="${one.label}"]`)?.textContent ?? one.label;
    marked.textContent = text(one.start, one.end);
    line.append(label, " ", marked, " ", remove);
    return line;
  }));
}

function madeButton(label, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button small";
  button.textContent = label;
  button.addEventListener("click", act);
  return button;
}

// Long texts are folded; a formatted one can be read raw.

function wireReading() {
  for (const text of document.querySelectorAll(".folding")) {
    if (text.hidden || text.scrollHeight < 900) continue;
    const button = madeButton(texts.more, () => {
      const folded = text.classList.toggle("folded");
      button.textContent = folded ? texts.more : texts.less;
      button.setAttribute("aria-expanded", String(!folded));
    });
    button.setAttribute("aria-expanded", "false");
    text.classList.add("folded");
    text.after(button);
  }
  const switches = [...document.querySelectorAll("[data-raw]")];
  for (const one of switches) one.addEventListener("click", () => showRaw(switches));
}

function showRaw(switches) {
  const raw = switches[0].getAttribute("aria-pressed") !== "true";
  for (const one of switches) {
    const section = one.closest("section");
    one.setAttribute("aria-pressed", String(raw));
    one.firstChild.textContent = `${raw ? texts.formatted : texts.plain} `;
    section.querySelector(".raw").hidden = !raw;
    section.querySelector(".formatted").hidden = raw;
  }
}

// Keys: letters by what is typed, or by their place where the layout types another script; digits by either.

function keyName(event) {
  const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code);
  if (digit && !event.shiftKey) return digit[1];
  if (/^[0-9a-z?]$/i.test(event.key)) return event.key.toLowerCase();
  const place = /^Key([A-Z])$/.exec(event.code);
  return place && event.key.length === 1 ? place[1].toLowerCase() : event.key;
}

function onKey(event) {
  const dialog = find("dialog[open]");
  const writes = event.target.closest("textarea, select");
  if (event.ctrlKey && event.key === "Enter" && form) return goOn();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (writes) {
    if (event.key === "Escape" && form) focusOn(current() ?? facets[0]);
    return;
  }
  const key = keyName(event);
  if (key.length === 1 && !find("#shortcuts").checked) return;
  if (dialog) {
    if ((key === "g" && dialog.id === "guidelines") || (key === "?" && dialog.id === "keys")) dialog.close();
    return;
  }
  if (act(key, event)) event.preventDefault();
}

function act(key, event) {
  const opens = { g: "guidelines", "?": "keys" }[key];
  const control = find(`[data-key="${CSS.escape(key)}"]`);
  const onControl = event.target.closest("a, button");
  if (opens) find(`#${opens}`).showModal();
  else if (control && !(key === "Enter" && onControl)) control.click();
  else if (!form) return false;
  else if (/^[0-9]$/.test(key)) choose(key);
  else if (key === "x" && event.shiftKey) find("#whole").click();
  else if (key === "x") choose("x");
  else if (key === "c") find("#comment").focus();
  else if (key === "Enter" && !onControl) goOn();
  else if ((key === "ArrowUp" || key === "ArrowDown") && event.target.closest(".facet")) {
    const next = beside(event.target.closest(".facet"), key === "ArrowUp" ? -1 : 1);
    if (next) focusOn(next);
  } else return false;
  return true;
}

// Wiring

function wireForm() {
  for (const facet of facets) {
    facet.addEventListener("change", (event) => {
      if (event.target.id === "senseless") save("senseless", event.target.checked);
      else saveFacet(facet);
      applyRules();
    });
  }
  const whole = () => save("response", find("#whole").checked ? { cannot: find("#why-response").value } : null);
  find(".whole").addEventListener("change", () => { whole(); applyRules(); });
  find("#comment").addEventListener("input", () => {
    clearTimeout(commentTimer);
    commentTimer = setTimeout(saveComment, 700);
  });
  find("#comment").addEventListener("change", saveComment);
  for (const one of document.querySelectorAll("[data-answer]")) {
    one.addEventListener("input", () => {
      clearTimeout(answerTimer);
      answerTimer = setTimeout(saveAnswers, 700);
    });
    one.addEventListener("change", saveAnswers);
  }
  for (const one of document.querySelectorAll("[data-mark]")) {
    one.addEventListener("pointerdown", (event) => event.preventDefault()); // which would lose what is selected
    one.addEventListener("click", () => markSelected(one.dataset.mark));
  }
  if (find(".marking")) showSpans();
  form.addEventListener("focusin", mark);
  form.addEventListener("submit", (event) => event.preventDefault());
  find("#next").addEventListener("click", (event) => { event.preventDefault(); goOn(); });
  find("#skip").addEventListener("submit", (event) => {
    event.preventDefault();
    leave(() => event.target.submit());
  });
  saveEarly();
  applyRules();
  if (!unset().length) find("#left").textContent = "";
}

// What was clicked while this script was still on its way.
function saveEarly() {
  for (const facet of facets) {
    const radios = [...facet.querySelectorAll("input[type=radio]")];
    if (radios.some((radio) => radio.checked !== radio.defaultChecked)) saveFacet(facet);
  }
  const comment = find("#comment");
  if (comment.value !== comment.defaultValue) save("comment", comment.value);
}

function wirePage() {
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => { tick(); if (document.hidden) { saveComment(); saveAnswers(); } });
  addEventListener("beforeunload", (event) => { saveComment(); saveAnswers(); if (sending) event.preventDefault(); });
  // A page that comes back from the browser's memory would show values from before later clicks.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  for (const link of document.querySelectorAll("a[data-key]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      leave(() => location.assign(link.href));
    });
  }
  for (const opener of document.querySelectorAll("[data-opens]")) {
    opener.addEventListener("click", (event) => {
      event.preventDefault();
      find(`#${opener.dataset.opens}`).showModal();
    });
  }
  const choice = find("#interface");
  choice.addEventListener("change", () => leave(() => choice.form.submit()));
  const shortcuts = find("#shortcuts");
  shortcuts.checked = localStorage.getItem("shortcuts") !== "off";
  shortcuts.addEventListener("change", () => localStorage.setItem("shortcuts", shortcuts.checked ? "on" : "off"));
  find("h1")?.focus({ preventScroll: true });
}

if (form) wireForm();
wireReading();
wirePage();
