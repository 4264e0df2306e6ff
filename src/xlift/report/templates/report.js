"use strict";
(() => {
  const byId = name => document.getElementById(name);
  const all = (selector, part = document) => [...part.querySelectorAll(selector)];
  const make = (tag, name, text) => { const made = document.createElement(tag); if (name) made.className = name; if (text !== undefined) made.textContent = text; return made; };
  const option = (value, text) => { const made = make("option", "", text); made.value = value; return made; };

  // Text of an element that holds gzip in base64; the element is emptied, since the text is large.
  async function unpack(element) {
    const letters = atob(element.textContent), bytes = new Uint8Array(letters.length);
    element.textContent = "";
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
    writer.write(bytes); writer.close();
    return new Response(stream.readable).text();
  }

  // --- colours, scale, print

  byId("theme").addEventListener("input", event => { document.documentElement.dataset.theme = event.target.value; });
  const scale = byId("scale");
  const chooseScale = () => all("[data-scale]").forEach(part => { part.hidden = part.dataset.scale !== scale.value; });
  if (scale) { scale.addEventListener("input", chooseScale); chooseScale(); }
  addEventListener("beforeprint", () => all("details:not(.raters, .long)").forEach(part => { if (!part.open) { part.open = true; part.dataset.closed = ""; } }));
  addEventListener("afterprint", () => all("details[data-closed]").forEach(part => { part.open = false; delete part.dataset.closed; }));

  // --- figures: drawn still at first, brought to life when they come into view

  const tip = byId("tip");
  function showTip(_, event, __, value) {
    tip.hidden = !value;
    if (!value) return;
    tip.replaceChildren(...Object.entries(value).map(([name, text]) => { const line = make("div"); line.append(make("b", "", `${name}: `), String(text)); return line; }));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  }
  let vega;
  const loadVega = () => vega ??= unpack(byId("vega")).then(text => { const script = make("script"); script.textContent = text; document.head.append(script); });
  async function enliven(drawing) {
    await loadVega();
    const place = make("div", "live");
    const specification = JSON.parse(await unpack(byId(`specification-${drawing.dataset.figure}`)));
    // Interpreted, not compiled: the page forbids evaluating text as code.
    await window.vegaEmbed(place, specification, { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: showTip });
    drawing.firstElementChild.hidden = true;
    drawing.append(place);
  }
  const views = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => { views.unobserve(entry.target); enliven(entry.target); }), { rootMargin: "200px" });

  // Where only a part can be seen, as of most figures on a phone, that is said.
  const widths = new ResizeObserver(entries => entries.forEach(({ target }) => target.classList.toggle("more", target.scrollWidth > target.clientWidth + 1)));

  // --- tables: a click on a head sorts by it, another one the other way round

  const sortKey = cell => {
    const text = (cell.querySelector(".value") ?? cell).textContent.trim().replace("−", "-").replace("< ", "");
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  const ordered = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  function sortBy(head) {
    const body = head.closest("table").tBodies[0], place = head.cellIndex, falling = head.getAttribute("aria-sort") === "ascending";
    const rows = [...body.rows].sort((a, b) => ordered(sortKey(a.cells[place]), sortKey(b.cells[place])));
    body.append(...falling ? rows.reverse() : rows);
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }
  const sortable = tables => tables.filter(table => table.tBodies[0]?.rows.length > 2).forEach(table => [...table.tHead.rows[0].cells].forEach(head => {
    const button = make("button", "sort"); button.type = "button"; button.title = "sort";
    button.append(...head.childNodes); head.append(button);
    button.addEventListener("click", () => sortBy(head));
  }));
  sortable(all("main table"));

  // Those that are long lie as text until they are opened: of hundreds of runs they have a hundred thousand cells.
  document.addEventListener("toggle", ({ target }) => {
    const text = target.querySelector(":scope > noscript");
    if (!text || !target.open) return;
    text.outerHTML = text.textContent;
    sortable(all("table", target));
    all(".wide", target).forEach(place => widths.observe(place));
  }, true);

  // --- the response browser

  const CELLS = 60, SIDE = 20;
  let head, count, chosen = [], shown = 1, matching = [], only = null, drawn = 0, search = "";
  const pieces = [], sources = document.getElementsByClassName("piece"), parts = () => Math.ceil(count / head.piece);
  let read = 0;

  // Pieces lie behind this script, so that the first prompts are shown before the last piece is there: one is whole when
  // something follows it.
  async function source(number) {
    while (document.readyState === "loading" && !sources[number]?.nextElementSibling) await new Promise(done => setTimeout(done, 10));
    return sources[number];
  }
  const piece = number => pieces[number] ??= source(number).then(unpack).then(text => {
    const found = JSON.parse(text);
    found.lower = { prompts: found.prompts.map(one => one.toLowerCase()), answers: found.answers.map(run => run.map(one => one ? one[0].toLowerCase() : "")) };
    read += 1;
    return pieces[number].found = found;
  });
  const found = prompt => pieces[Math.floor(prompt / head.piece)]?.found;

  function hasWords(prompt) {
    const part = found(prompt), place = prompt % head.piece;
    if (!part) return false;
    return part.lower.prompts[place].includes(search) || chosen.some(run => part.lower.answers[run][place].includes(search));
  }
  function scalesOf(choice) {
    const [kind, name] = [choice.slice(0, 1), choice.slice(1)];
    return head.scales.map((_, place) => place).filter(place => !choice || (kind === "f" ? head.scales[place][0] === name : place === Number(name)));
  }
  function hasRating(scales, value) {
    const letters = chosen.flatMap(run => scales.map(place => head.values[run][place]));
    return prompt => letters.some(one => value ? one[prompt] === value : one[prompt] !== "-");
  }
  function filter() {
    const language = byId("language").value, split = byId("split").value, constraint = byId("constraint").value;
    const facet = byId("facet").value, value = byId("value").value;
    const rated = facet || value ? hasRating(scalesOf(facet), value) : () => true;
    search = byId("search").value.toLowerCase().trim();
    matching = [];
    const study = head.order.length && byId("order").value === "study";
    for (let place = 0; place < count; place++) {
      const i = study ? head.order[place] : place;
      if (only === null ? (!language || head.language[i] === language) && (!split || head.split[i] === split) && (!constraint || head.constraint[i] === constraint) && rated(i) && (!search || hasWords(i)) : i === only) matching.push(i);
    }
    const reading = search && only === null && read < parts() ? `; reading ${read} of ${parts()} parts` : "";
    byId("count").textContent = `${matching.length} of ${count} prompts${reading}`;
    byId("all").hidden = only === null;
    if (reading) readAll();
    return draw();
  }
  let reader;
  const readAll = () => reader ??= (async () => {
    for (let i = 0; i < parts(); i++) { await piece(i); await new Promise(done => setTimeout(done)); }
    byId("cards").dataset.read = "all";
    if (search) filter();
  })();

  async function draw() {
    const number = ++drawn, wanted = matching.slice(0, shown);
    byId("cards").setAttribute("aria-busy", "true");
    if (wanted.some(prompt => !found(prompt))) await Promise.all([...new Set(wanted.map(prompt => Math.floor(prompt / head.piece)))].map(piece));
    if (number !== drawn) return;
    byId("cards").replaceChildren(...wanted.map(card));
    byId("more").hidden = shown >= matching.length;
    byId("cards").setAttribute("aria-busy", String(Boolean(search) && read < parts() && only === null));
  }
  function card(prompt) {
    const part = found(prompt), place = prompt % head.piece, box = make("article", "prompt"), top = make("header");
    const facts = [head.id[prompt], head.split[prompt], head.category[prompt], head.constraint[prompt] && `constraint ${head.constraint[prompt]}`, `answer expected in ${head.reply[prompt]}`];
    const ask = make("div", "ask", part.prompts[place]);
    ask.lang = head.language[prompt]; ask.dir = head.rtl.includes(head.language[prompt]) ? "rtl" : "ltr";
    top.append(make("div", "soft", facts.filter(Boolean).join(" · ")), ask);
    const row = make("div", "answers");
    lengthen(row, prompt, only === prompt ? chosen.length : SIDE);
    box.append(top, row);
    return box;
  }
  // Of many runs side by side the next are made when the last one that is there comes into view.
  const lasts = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(({ target }) => { lasts.unobserve(target); target.more(); }));
  function lengthen(row, prompt, most) {
    const runs = chosen.slice(row.childElementCount, row.childElementCount + most), part = found(prompt);
    row.append(...runs.map(run => answer(run, prompt, part.answers[run][prompt % head.piece])));
    if (row.childElementCount >= chosen.length) return;
    row.lastElementChild.more = () => lengthen(row, prompt, most);
    lasts.observe(row.lastElementChild);
  }
  const name = run => head.checkpoints[run][1] + (head.several.has(head.checkpoints[run][0]) ? ` step ${head.checkpoints[run][2]}` : "");
  const address = (run, prompt) => `#response=${[head.checkpoints[run][0], head.checkpoints[run][2], head.id[prompt]].map(encodeURIComponent).join("/")}`;
  function answer(run, prompt, made) {
    const cell = make("div"), who = make("div", "who", `${name(run)} `), link = make("a", "", "¶");
    link.href = address(run, prompt); link.title = "link to this response"; link.setAttribute("aria-label", link.title);
    if (made) who.append(link);
    cell.append(who);
    if (only === prompt && link.hash === location.hash) cell.className = "here";
    if (!made) { cell.append(make("div", "soft", "no response yet")); return cell; }
    const text = make("div", "answer");
    text.lang = head.reply[prompt]; text.dir = "auto"; text.append(...marked(made));
    cell.append(...made[2].map(chip), text);
    if (made[1]) cell.append(make("div", "soft", "cut at the token limit"));
    if (made[2].length) cell.append(raters(made[2]));
    return cell;
  }
  const shownValue = value => value === null ? "–" : String(value);
  const rank = (value, lowest, best) => value === null ? "m" : value <= lowest ? 0 : value >= best ? 2 : 1;
  function chip([place, value]) {
    const [facet, rater, lowest, best] = head.scales[place], who = rater.includes(":") ? ` ${rater.split(":").slice(1).join(":")}` : "";
    const of = best !== 2 && value !== null ? ` of ${best}` : "";
    return make("span", `chip v${rank(value, lowest, best)}`, `${facet} ${shownValue(value)}${of}${who}`);
  }
  function raters(ratings) {
    const box = make("details", "raters"), list = make("ul");
    list.append(...ratings.map(([place, value, signature, reason]) => make("li", "", `${head.scales[place][0]} ${shownValue(value)} by ${head.scales[place][1]}${reason ? `, because: ${reason}` : ""} · ${head.signatures[signature]}`)));
    box.append(make("summary", "", "who rated, and how"), list);
    return box;
  }
  // Offsets count characters, not UTF-16 units.
  function marked([text, , ratings]) {
    const spans = ratings.flatMap(one => one[4] || []).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    if (!spans.length) return [text];
    const letters = Array.from(text), nodes = [];
    let position = 0;
    for (const [start, end, what, byPerson] of spans) {
      if (start < position) continue;
      const mark = make("mark", "", letters.slice(start, end).join(""));
      mark.title = byPerson ? `marked: ${what}` : `in another language: ${what}`; mark.dataset.language = what;
      nodes.push(letters.slice(position, start).join(""), mark);
      position = end;
    }
    return [...nodes, letters.slice(position).join("")];
  }

  // Prompts shown at once: fewer where many runs stand side by side.
  const pageSize = () => Math.min(20, Math.max(3, Math.floor(CELLS / Math.max(1, chosen.length))));
  const chooseRuns = () => { chosen = all("#runs input").filter(box => box.checked).map(box => Number(box.value)); };
  function follow() {
    const target = byId(location.hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
    if (!location.hash.startsWith("#response=")) return;
    const [run, step, id] = location.hash.slice(10).split("/").map(decodeURIComponent);
    const place = head.checkpoints.findIndex(one => one[0] === run && String(one[2]) === step), prompt = head.id.indexOf(id);
    if (place < 0 || prompt < 0) { byId("count").textContent = "the linked response is not in this report"; return; }
    all("#runs input")[place].checked = true; only = prompt;
    chooseRuns();
    filter().then(() => byId("responses").scrollIntoView());
  }
  function leave() {
    if (only === null) return;
    only = null;
    history.replaceState(null, "", "#responses");
  }
  function prepare() {
    count = head.id.length;
    const ids = head.checkpoints.map(one => one[0]);
    head.several = new Set(ids.filter((id, place) => ids.indexOf(id) !== place));
    byId("runs").append(...head.checkpoints.map((_, run) => { const box = make("input"), label = make("label"); box.type = "checkbox"; box.value = run; box.checked = head.first.includes(run); label.append(box, name(run)); return label; }));
    const facets = [...new Set(head.scales.map(one => one[0]))];
    byId("facet").append(...facets.flatMap(facet => {
      const own = head.scales.map((one, place) => [one, place]).filter(([one]) => one[0] === facet);
      const each = own.length > 1 ? own.map(([one, place]) => option(`s${place}`, `${facet}, by ${one[1]}`)) : [];
      return [option(`f${facet}`, own.length > 1 ? `${facet}, by anyone` : facet), ...each];
    }));
    const [low, high] = [Math.min(0, ...head.scales.map(one => one[2])), Math.max(2, ...head.scales.map(one => one[3]))];
    for (let digit = low; digit <= high; digit++) byId("value").firstElementChild.after(option(String(digit), String(digit)));
    const constraints = [...new Set(head.constraint)].filter(Boolean).sort();
    byId("constraint").append(...constraints.map(one => option(one, one)));
    byId("constraint").parentElement.hidden = !constraints.length;
    chooseRuns();
    shown = pageSize();
  }
  async function start() {
    head = JSON.parse(await unpack(byId("head")));
    prepare();
    document.querySelector(".filters").addEventListener("input", () => { leave(); chooseRuns(); shown = pageSize(); filter(); });
    document.querySelector(".filters").addEventListener("submit", event => event.preventDefault());
    byId("all").addEventListener("click", () => { leave(); shown = pageSize(); filter(); });
    byId("more").addEventListener("click", () => { shown += pageSize(); draw(); });
    addEventListener("hashchange", follow);
    await filter();
    follow();
    all(".drawing, .wide").forEach(place => widths.observe(place));
    // Figures last: they are whole while they are still.
    readAll().finally(() => all(".drawing").forEach(drawing => views.observe(drawing)));
  }
  start();
})();
