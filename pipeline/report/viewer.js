"use strict";
// The sample viewer: a list of rows, one row's canvas, and a replay of its passes.
// All texts are written as text, never as HTML. `#row=ID&pass=N` in the address opens a row there.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("sample");
  if (!root) return;
  const { rows, tokens, block_length: blockLength } = data.viewer;
  const MASK = "░";
  const EOS = "∎";
  const REPLAY_SECONDS = 6;
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
    showPrompt(row.prompt);
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
  const isFixed = (n) => row.fixed.includes(n);

  function canvas() {
    cells = row.ids.map((id, n) => {
      const cell = element("span", "cell");
      const text = tokens[id] === undefined ? `${id}` : tokens[id];
      const isTail = n >= row.facts.num_output_tokens && id === row.ids[row.facts.num_output_tokens];
      cell.dataset.text = isTail ? EOS : visible(text);
      const when = row.commit[n] ? `committed by pass ${row.commit[n]}`
        : isFixed(n) ? "fixed by the template" : "filled with EOS at the end";
      cell.title = `position ${n} · id ${id} · ${JSON.stringify(text)} · ${when}`;
      cell.classList.toggle("tail", isTail);
      const [r, g, b] = colour(row.commit[n] ? row.commit[n] / passes() : isFixed(n) ? 0 : 1);
      cell.style.setProperty("--pass", `rgb(${r},${g},${b})`);
      cell.style.setProperty("--on-pass", r * 0.299 + g * 0.587 + b * 0.114 > 140 ? "#10151d" : "#ffffff");
      return cell;
    });
    const flow = [];
    cells.forEach((cell, n) => {
      if (n && blockLength && n % blockLength === 0) flow.push(element("span", "block", "│"));
      flow.push(cell);
      if ((tokens[row.ids[n]] || "").includes("\n")) flow.push(document.createElement("br"));
    });
    part("canvas").replaceChildren(...flow);
  }

  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";

  function seek(to) {
    pass = Math.max(0, Math.min(to, row.kl.length));
    if (!row.ids.length) return;
    slider.value = pass;
    let numOpen = 0;
    let numNow = 0;
    let numFilled = 0;
    cells.forEach((cell, n) => {
      const when = row.commit[n] || (isFixed(n) ? 0 : passes());
      const isOpen = when > pass;
      const isNow = when === pass && pass > 0;
      numOpen += isOpen;
      numNow += isNow && row.commit[n] > 0;
      numFilled += isNow && row.commit[n] === 0 && !isFixed(n);
      cell.classList.toggle("open", isOpen);
      cell.classList.toggle("now", isNow && pass < passes());
      cell.textContent = isOpen ? MASK.repeat(Math.min(12, [...cell.dataset.text].length)) : cell.dataset.text;
    });
    const phase = { r: "refinement", d: "decoding" }[row.phases && row.phases[pass - 1]] || "";
    const filled = numFilled ? `, ${numFilled} filled with EOS` : "";
    const counts = `${numNow} committed${filled}, ${numOpen} still open`;
    const doing = pass === 0 ? `before the first pass, ${row.fixed.length ? `${numOpen} positions` : "all positions"} open` : `${phase && `${phase}: `}${counts}`;
    part("pass").textContent = `Pass ${pass} of ${passes()}`;
    part("doing").textContent = doing;
    slider.setAttribute("aria-valuetext", `pass ${pass} of ${passes()}: ${doing}`);
    moveCursor(pass);
  }

  // Viridis, by its values at tenths: even in lightness, readable without colour vision.
  const VIRIDIS = [
    [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140],
    [34, 168, 132], [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
  ];

  function colour(share) {
    const at = Math.min(0.9999, Math.max(0, share)) * 10;
    const [low, high] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.floor(at) + 1]];
    return low.map((value, n) => Math.round(value + (high[n] - value) * (at % 1)));
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

  // Small tools.

  // The words of a prompt: a text, or those of a chat's turns, each a role and a content.
  function plain(prompt) {
    return Array.isArray(prompt) ? prompt.map(([, content]) => content).join("\n") : prompt;
  }

  function showPrompt(prompt) {
    if (!Array.isArray(prompt)) {
      part("prompt").textContent = prompt === null ? "(null)" : prompt;
      return;
    }
    part("prompt").replaceChildren(
      ...prompt.map(([role, content]) => {
        const turn = element("div", "turn");
        turn.append(element("b", "role", role), content);
        return turn;
      }),
    );
  }

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const stop of [...new Set(rows.map((r) => r.stop))].sort()) {
    part("stop").append(new Option(stop, stop));
  }
  list();
  if (!fromAddress()) {
    const first = rows.find((r) => r.ids.length) || rows[0];
    open(first, first.kl.length);
  }
})();
