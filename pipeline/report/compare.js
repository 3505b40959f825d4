"use strict";
// The viewer of two runs: a list of rows, and both canvases of one at the same pass.
// All texts are written as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("sample");
  if (!root) return;
  const { rows, tokens, blocks } = data.pairs;
  const NAMES = ["A", "B"];
  const { element, plain } = Canvas;
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  // Ids mean the same tokens where both tokenizers spell those that both runs have alike.
  const alike = Object.keys(tokens[0]).every((id) => tokens[1][id] === undefined || tokens[1][id] === tokens[0][id]);
  let shown = [];

  function chosen() {
    const words = part("search").value.trim().toLowerCase();
    const which = part("which").value;
    return rows.filter((r) => {
      const texts = [r.id, plain(r.prompt), ...r.sides.flatMap((side) => [side.text, side.error])];
      const hit = !words || texts.some((text) => text && text.toLowerCase().includes(words));
      return hit && (!which || r.why === which);
    });
  }

  function label(row) {
    const counts = row.sides.map((side) => side.facts.num_forwards ?? "–").join(" → ");
    return [
      element("span", row.why === "same answer" ? "stop" : "stop failed", row.why),
      element("span", "passes", `${counts} passes`),
    ];
  }

  const passes = (row) => Math.max(...row.sides.map((side) => side.kl.length));

  function open(row) {
    part("why").textContent = row.why;
    shown = row.sides.map(side);
    mark();
    part("pair").replaceChildren(...shown.map(({ box }) => box));
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

  function show(row, pass) {
    for (const { of, doing, cells } of shown) {
      const last = of.kl.length;
      const at = Math.min(pass, last);
      const { numOpen } = Canvas.show(of, cells, at);
      const phase = { r: "refinement", d: "decoding" }[of.phases && of.phases[at - 1]] || "";
      const state = at === last ? "ended" : [phase, `${numOpen} still open`].filter(Boolean).join(": ");
      doing.textContent = last ? `pass ${at} of ${last}, ${state}` : `${of.facts.num_forwards ?? "no"} passes`;
    }
    part("pass").textContent = passes(row) ? `Pass ${pass} of ${passes(row)}` : "These runs keep no traces";
    part("slider").setAttribute("aria-valuetext", part("pass").textContent);
  }

  for (const why of [...new Set(rows.map((r) => r.why))].sort()) part("which").append(new Option(why, why));
  Moving(root, {
    ...{ rows, chosen, label, open, passes, show },
    listed: "shown rows",
    filters: ["search", "which"],
  }).begin(rows[0]);
})();
