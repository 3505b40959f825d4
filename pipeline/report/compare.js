"use strict";
// The viewer of two runs: a list of rows, and both canvases of one at the same pass.
// All texts are written as text, never as HTML. `#row=ID&pass=N` in the address opens a row there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("sample");
  if (!root) return;
  const { rows, tokens, blocks } = data.pairs;
  const NAMES = ["A", "B"];
  const REPLAY_SECONDS = 6;
  const { element, plain } = Canvas;
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const slider = part("slider");
  // Ids mean the same tokens where both tokenizers spell those that both runs have alike.
  const alike = Object.keys(tokens[0]).every((id) => tokens[1][id] === undefined || tokens[1][id] === tokens[0][id]);
  let row = null;
  let pass = 0;
  let shown = [];
  let timer = 0;

  function chosen() {
    const words = part("search").value.trim().toLowerCase();
    const which = part("which").value;
    return rows.filter((r) => {
      const texts = [r.id, plain(r.prompt), ...r.sides.flatMap((side) => [side.text, side.error])];
      const hit = !words || texts.some((text) => text && text.toLowerCase().includes(words));
      return hit && (!which || r.why === which);
    });
  }

  function list() {
    const found = chosen();
    part("found").textContent = `${found.length} of ${rows.length} shown rows`;
    part("list").replaceChildren(
      ...found.map((r) => {
        const button = element("button", "row");
        button.type = "button";
        button.dataset.id = r.id;
        const passes = r.sides.map((side) => side.facts.num_forwards ?? "–").join(" → ");
        button.append(
          element("span", "id", r.id),
          element("span", r.why === "same answer" ? "stop" : "stop failed", r.why),
          element("span", "passes", `${passes} passes`),
          element("span", "excerpt", (plain(r.prompt) || "no prompt").slice(0, 90)),
        );
        button.setAttribute("aria-current", String(r === row));
        button.addEventListener("click", () => show(r));
        return button;
      }),
    );
  }

  const passes = () => Math.max(...row.sides.map((side) => side.kl.length));

  function open(next, at) {
    row = next;
    stopPlaying();
    for (const button of part("list").children) {
      button.setAttribute("aria-current", String(button.dataset.id === row.id));
    }
    part("title").textContent = `Row ${row.id}`;
    part("why").textContent = row.why;
    Canvas.prompt(part("prompt"), row.prompt);
    slider.max = passes();
    shown = row.sides.map(side);
    mark();
    part("pair").replaceChildren(...shown.map(({ box }) => box));
    seek(at);
  }

  // One run's half: what it says at a pass, its canvas, its answer.
  function side(of, number) {
    const box = element("div", "half");
    const head = element("h4", "", `${NAMES[number]} · ${of.stop}`);
    const doing = element("div", "soft where");
    box.append(head, doing);
    let cells = [];
    if (of.error) box.append(element("div", "error", of.error));
    if (of.ids.length) {
      const { made, flow } = Canvas.cells(of, tokens[number], blocks[number]);
      cells = made;
      const canvas = element("div", "canvas");
      canvas.append(...flow);
      box.append(canvas);
    }
    if (of.text !== null) {
      const answer = element("details");
      answer.open = !of.ids.length;
      answer.append(element("summary", "", "Answer as text"), element("div", "prompt", of.text));
      box.append(answer);
    }
    return { of, box, doing, cells };
  }

  function mark() {
    const [a, b] = shown;
    if (!alike) return;
    for (const [mine, other] of [[a, b], [b, a]]) {
      mine.cells.forEach((cell, n) => {
        cell.classList.toggle("other", n < other.of.ids.length && mine.of.ids[n] !== other.of.ids[n]);
      });
    }
  }

  function seek(to) {
    pass = Math.max(0, Math.min(to, passes()));
    slider.value = pass;
    for (const { of, doing, cells } of shown) {
      const last = of.kl.length;
      const at = Math.min(pass, last);
      const { numOpen } = Canvas.show(of, cells, at);
      const phase = { r: "refinement", d: "decoding" }[of.phases && of.phases[at - 1]] || "";
      const state = at === last ? "ended" : [phase, `${numOpen} still open`].filter(Boolean).join(": ");
      doing.textContent = last ? `pass ${at} of ${last}, ${state}` : `${of.facts.num_forwards ?? "no"} passes`;
    }
    part("pass").textContent = passes() ? `Pass ${pass} of ${passes()}` : "These runs keep no traces";
    slider.setAttribute("aria-valuetext", part("pass").textContent);
  }

  function show(next) {
    open(next, Infinity);
    address();
  }

  function stopPlaying() {
    clearInterval(timer);
    timer = 0;
    part("play").textContent = "▶ Play";
  }

  function play() {
    if (timer) return stopPlaying();
    if (pass >= passes()) seek(0);
    const wait = Math.min(400, Math.max(30, (REPLAY_SECONDS * 1000) / Math.max(1, passes())));
    part("play").textContent = "❚❚ Pause";
    timer = setInterval(() => {
      seek(pass + 1);
      if (pass >= passes()) {
        stopPlaying();
        address();
      }
    }, wait);
  }

  function step(to) {
    stopPlaying();
    seek(to);
    address();
  }

  function neighbour(by) {
    const found = chosen();
    const next = found[found.indexOf(row) + by];
    if (next) show(next);
    const button = part("list").querySelector("[aria-current=true]");
    if (button) button.scrollIntoView({ block: "nearest" });
  }

  root.addEventListener("keydown", (event) => {
    if (!row || event.target.matches("input[type=search], select")) return;
    const keys = {
      ArrowLeft: () => step(pass - 1),
      ArrowRight: () => step(pass + 1),
      Home: () => step(0),
      End: () => step(passes()),
      ArrowUp: () => neighbour(-1),
      ArrowDown: () => neighbour(1),
    };
    if (event.key === " " && !event.target.matches("button, summary")) keys[" "] = play;
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  slider.addEventListener("input", () => step(Number(slider.value)));
  part("play").addEventListener("click", play);
  part("back").addEventListener("click", () => step(pass - 1));
  part("on").addEventListener("click", () => step(pass + 1));
  for (const name of ["search", "which"]) part(name).addEventListener("input", list);

  let waiting = 0;

  function address() {
    // Browsers limit how often an address may change: the last one of a burst is kept.
    clearTimeout(waiting);
    const to = `#row=${encodeURIComponent(row.id)}&pass=${pass}`;
    waiting = setTimeout(() => history.replaceState(null, "", to), 250);
  }

  function fromAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const found = rows.find((r) => r.id === asked.get("row"));
    if (!found) return false;
    const at = asked.get("pass");
    open(found, at === null ? Infinity : Number(at) || 0);
    return true;
  }

  window.addEventListener("hashchange", fromAddress);
  for (const why of [...new Set(rows.map((r) => r.why))].sort()) part("which").append(new Option(why, why));
  list();
  if (!fromAddress()) open(rows[0], Infinity);
})();
