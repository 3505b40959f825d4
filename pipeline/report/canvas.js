"use strict";
// One row's canvas: its positions as elements, and what they show after a pass. Also its prompt.
// All texts are written as text, never as HTML.
const Canvas = (() => {
  const MASK = "░";
  const EOS = "∎";

  // Whether a position's token was there before the first pass, by a template.
  const isFixed = (row, n) => (row.fixed || []).includes(n);

  // The elements of all positions, and the same with marks between blocks and at line ends.
  function cells(row, tokens, blockLength) {
    const made = row.ids.map((id, n) => {
      const cell = element("span", "cell");
      const text = tokens[id] === undefined ? `${id}` : tokens[id];
      const isTail = n >= row.facts.num_output_tokens && id === row.ids[row.facts.num_output_tokens];
      cell.dataset.text = isTail ? EOS : visible(text);
      const other = isFixed(row, n) ? "fixed by the template" : "filled with EOS at the end";
      const when = row.commit[n] ? `committed by pass ${row.commit[n]}` : other;
      cell.title = `position ${n} · id ${id} · ${JSON.stringify(text)} · ${when}`;
      cell.classList.toggle("tail", isTail);
      const [r, g, b] = colour(row.commit[n] ? row.commit[n] / row.kl.length : isFixed(row, n) ? 0 : 1);
      cell.style.setProperty("--pass", `rgb(${r},${g},${b})`);
      cell.style.setProperty("--on-pass", r * 0.299 + g * 0.587 + b * 0.114 > 140 ? "#10151d" : "#ffffff");
      return cell;
    });
    const flow = [];
    made.forEach((cell, n) => {
      if (n && blockLength && n % blockLength === 0) flow.push(element("span", "block", "│"));
      flow.push(cell);
      if ((tokens[row.ids[n]] || "").includes("\n")) flow.push(document.createElement("br"));
    });
    return { made, flow };
  }

  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";

  // Show the positions as they are after a pass; how many are open, and were filled by it.
  function show(row, made, pass) {
    let numOpen = 0;
    let numNow = 0;
    let numFilled = 0;
    const last = row.kl.length;
    made.forEach((cell, n) => {
      const when = row.commit[n] || (isFixed(row, n) ? 0 : last);
      const isOpen = when > pass;
      const isNow = when === pass && pass > 0;
      numOpen += isOpen;
      numNow += isNow && row.commit[n] > 0;
      numFilled += isNow && row.commit[n] === 0;
      cell.classList.toggle("open", isOpen);
      cell.classList.toggle("now", isNow && pass < last);
      cell.textContent = isOpen ? MASK.repeat(Math.min(12, [...cell.dataset.text].length)) : cell.dataset.text;
    });
    return { numOpen, numNow, numFilled };
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

  // The words of a prompt: a text, or those of a chat's turns, each a role and a content.
  function plain(prompt) {
    return Array.isArray(prompt) ? prompt.map(([, content]) => content).join("\n") : prompt;
  }

  function prompt(place, value) {
    if (!Array.isArray(value)) {
      place.textContent = value === null ? "(null)" : value;
      return;
    }
    place.replaceChildren(
      ...value.map(([role, content]) => {
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

  return { cells, show, plain, prompt, element };
})();
