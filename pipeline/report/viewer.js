"use strict";
// The sample viewer: a list of rows, one row's canvas, and a replay of its passes.
// All texts are written as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("sample");
  if (!root) return;
  const { rows, tokens, block_length: blockLength } = data.viewer;
  const { element, plain } = Canvas;
  const part = (name) => root.querySelector(`[data-part=${name}]`);
  let cells = [];
  let moveCursor = () => {};

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

  const label = (row) => [
    element("span", `stop ${row.stop}`, row.stop),
    element("span", "passes", row.facts.num_forwards ? `${row.facts.num_forwards} passes` : ""),
  ];

  // One row.

  function open(row) {
    part("why").textContent = { failed: "a failed row", "most passes": "among the most passes" }[row.why] || "";
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
    if (!row.ids.length) return;
    part("scale-end").textContent = `pass ${row.kl.length}`;
    const { made, flow } = Canvas.cells(row, tokens, blockLength);
    cells = made;
    part("canvas").replaceChildren(...flow);
    moveCursor = traces(row);
  }

  function show(row, pass) {
    if (!row.ids.length) return;
    const { numOpen, numNow, numFilled } = Canvas.show(row, cells, pass);
    const phase = { r: "refinement", d: "decoding" }[row.phases && row.phases[pass - 1]] || "";
    const filled = numFilled ? `, ${numFilled} filled with EOS` : "";
    const counts = `${numNow} committed${filled}, ${numOpen} still open`;
    const doing = pass === 0 ? `before the first pass, ${row.fixed.length ? `${numOpen} positions` : "all positions"} open` : `${phase && `${phase}: `}${counts}`;
    part("pass").textContent = `Pass ${pass} of ${row.kl.length}`;
    part("doing").textContent = doing;
    part("slider").setAttribute("aria-valuetext", `pass ${pass} of ${row.kl.length}: ${doing}`);
    moveCursor(pass);
  }

  // The traces beside it.

  function traces(row) {
    const { tau_refine: refine, tau_decode: decode } = data.viewer;
    const taus = [...new Set([refine, decode].filter((tau) => tau > 0))];
    const shown = [
      { name: "kl", values: row.kl, label: "D_t (nats)", isLog: true, levels: taus },
      { name: "entropy", values: row.entropy, label: "mean entropy (nats)", isLog: false, levels: [] },
    ];
    const cursors = shown.map((trace) =>
      Traces.draw(part(trace.name), part(`${trace.name}-value`), trace, row.phases, moving.step),
    );
    return (at) => cursors.forEach((move) => move(at));
  }

  for (const stop of [...new Set(rows.map((r) => r.stop))].sort()) {
    part("stop").append(new Option(stop, stop));
  }
  const moving = Moving(root, {
    ...{ rows, chosen, label, open, show },
    listed: "sampled rows",
    filters: ["search", "stop", "order"],
    passes: (row) => row.kl.length,
  });
  moving.begin(rows.find((r) => r.ids.length) || rows[0]);
})();
