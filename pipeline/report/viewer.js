"use strict";
// The sample viewer: a list of rows, one row's canvas, and a replay of its passes.
// All texts are written as text, never as HTML. `#row=ID&pass=N` in the address opens a row there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("sample");
  if (!root) return;
  const { rows, tokens, block_length: blockLength } = data.viewer;
  const REPLAY_SECONDS = 6;
  const { element, plain } = Canvas;
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  const slider = part("slider");
  let row = null;
  let pass = 0;
  let cells = [];
  let moveCursor = () => {};
  let timer = 0;

  // The list.

  function chosen() {
    const words = part("search").value.trim().toLowerCase();
    const stop = part("stop").value;
    const found = rows.filter((r) => {
      const texts = [r.id, plain(r.prompt), r.text, r.error].filter(Boolean);
      const hit = !words || texts.some((text) => text.toLowerCase().includes(words));
      return hit && (!stop || r.stop === stop);
    });
    const orders = {
      id: (a, b) => (a.id < b.id ? -1 : 1),
      most: (a, b) => (b.facts.num_forwards || 0) - (a.facts.num_forwards || 0),
      fewest: (a, b) => (a.facts.num_forwards || 0) - (b.facts.num_forwards || 0),
      tokens: (a, b) => (b.facts.num_output_tokens || 0) - (a.facts.num_output_tokens || 0),
      entropy: (a, b) => (b.facts.max_entropy_at_stop || 0) - (a.facts.max_entropy_at_stop || 0),
    };
    return found.sort(orders[part("order").value]);
  }

  function list() {
    const found = chosen();
    part("found").textContent = `${found.length} of ${rows.length} sampled rows`;
    part("list").replaceChildren(
      ...found.map((r) => {
        const button = element("button", "row");
        button.type = "button";
        button.dataset.id = r.id;
        button.append(
          element("span", "id", r.id),
          element("span", `stop ${r.stop}`, r.stop),
          element("span", "passes", r.facts.num_forwards ? `${r.facts.num_forwards} passes` : ""),
          element("span", "excerpt", (plain(r.prompt) || "no prompt").slice(0, 90)),
        );
        button.setAttribute("aria-current", String(r === row));
        button.addEventListener("click", () => show(r));
        return button;
      }),
    );
  }

  // One row.

  function open(next, at) {
    row = next;
    stopPlaying();
    for (const button of part("list").children) {
      button.setAttribute("aria-current", String(button.dataset.id === row.id));
    }
    part("title").textContent = `Row ${row.id}`;
    part("why").textContent = { failed: "a failed row", "most passes": "among the most passes" }[row.why] || "";
    Canvas.prompt(part("prompt"), row.prompt);
    part("error").textContent = row.error || "";
    part("error").hidden = !row.error;
    part("replay").hidden = !row.ids.length;
    part("text").textContent = row.text === null ? "" : row.text;
    const facts = Object.entries(row.facts).map(([name, value]) => {
      const fact = element("div", "fact");
      fact.append(element("dt", "", name), element("dd", "", String(value)));
      return fact;
    });
    part("facts").replaceChildren(...facts);
    if (row.ids.length) {
      slider.max = passes();
      part("scale-end").textContent = `pass ${passes()}`;
      canvas();
      moveCursor = traces();
    }
    seek(at);
  }

  function show(next) {
    open(next, next.kl.length);
    address();
  }

  const passes = () => row.kl.length;

  function canvas() {
    const { made, flow } = Canvas.cells(row, tokens, blockLength);
    cells = made;
    part("canvas").replaceChildren(...flow);
  }

  function seek(to) {
    pass = Math.max(0, Math.min(to, row.kl.length));
    if (!row.ids.length) return;
    slider.value = pass;
    const { numOpen, numNow, numFilled } = Canvas.show(row, cells, pass);
    const phase = { r: "refinement", d: "decoding" }[row.phases && row.phases[pass - 1]] || "";
    const filled = numFilled ? `, ${numFilled} filled with EOS` : "";
    const counts = `${numNow} committed${filled}, ${numOpen} still open`;
    const doing = pass === 0 ? `before the first pass, ${row.fixed.length ? `${numOpen} positions` : "all positions"} open` : `${phase && `${phase}: `}${counts}`;
    part("pass").textContent = `Pass ${pass} of ${passes()}`;
    part("doing").textContent = doing;
    slider.setAttribute("aria-valuetext", `pass ${pass} of ${passes()}: ${doing}`);
    moveCursor(pass);
  }

  // The traces beside it.

  function traces() {
    const { tau_refine: refine, tau_decode: decode } = data.viewer;
    const taus = [...new Set([refine, decode].filter((tau) => tau > 0))];
    const shown = [
      { name: "kl", values: row.kl, label: "D_t (nats)", isLog: true, levels: taus },
      { name: "entropy", values: row.entropy, label: "mean entropy (nats)", isLog: false, levels: [] },
    ];
    const cursors = shown.map((trace) =>
      Traces.draw(part(trace.name), part(`${trace.name}-value`), trace, row.phases, step),
    );
    return (at) => cursors.forEach((move) => move(at));
  }

  // Moving.

  function stopPlaying() {
    clearInterval(timer);
    timer = 0;
    part("play").textContent = "▶ Play";
  }

  function play() {
    if (timer) return stopPlaying();
    if (pass >= passes()) seek(0);
    const wait = Math.min(400, Math.max(30, (REPLAY_SECONDS * 1000) / passes()));
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
    const shown = chosen();
    const next = shown[shown.indexOf(row) + by];
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
    if (event.key === " " && !event.target.matches("button")) keys[" "] = play;
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  slider.addEventListener("input", () => step(Number(slider.value)));
  part("play").addEventListener("click", play);
  part("back").addEventListener("click", () => step(pass - 1));
  part("on").addEventListener("click", () => step(pass + 1));
  for (const name of ["search", "stop", "order"]) part(name).addEventListener("input", list);

  // The address.

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
    open(found, at === null ? found.kl.length : Number(at) || 0);
    return true;
  }

  window.addEventListener("hashchange", fromAddress);

  for (const stop of [...new Set(rows.map((r) => r.stop))].sort()) {
    part("stop").append(new Option(stop, stop));
  }
  list();
  if (!fromAddress()) {
    const first = rows.find((r) => r.ids.length) || rows[0];
    open(first, first.kl.length);
  }
})();
