"use strict";
// One row's trace as a small chart with a cursor. Knows nothing of the viewer around it.
const Traces = (() => {
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 170, 52, 12, 12, 34];
  const LEAST = 1e-8; // Where a logarithmic axis ends at the latest, nats.
  const DOTS = 80; // A longer trace is a line alone.

  // trace: values by pass (null: none), their label, whether the axis is logarithmic, dashed levels.
  // phases: r or d for each pass, or null. onPick is called with the pass that was clicked.
  // Returns a function that moves the cursor to a pass and writes the value there into `reading`.
  function draw(svg, reading, trace, phases, onPick) {
    const { values, levels } = trace;
    const base = HEIGHT - BOTTOM;
    const scale = scaleOf(values, levels, trace.isLog);
    const px = (n) => LEFT + ((n - 1) / Math.max(1, values.length - 1)) * (WIDTH - LEFT - RIGHT);
    const py = (value) => base - scale.share(value) * (base - TOP);
    const across = (look, y) => add(svg, "line", { class: look, x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y });
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.replaceChildren();
    shade(svg, px, phases || "", base);
    for (const [value, text] of scale.ticks) {
      across("grid", py(value));
      add(svg, "text", { class: "tick", x: LEFT - 6, y: py(value) + 4, "text-anchor": "end" }, text);
    }
    for (const level of levels) across("rule", py(level));
    line(svg, values, px, py);
    across("axis", base);
    const stride = Math.max(1, Math.ceil(values.length / 6));
    for (let n = 1; n <= values.length; n += stride) {
      add(svg, "text", { class: "tick", x: px(n), y: base + 15, "text-anchor": "middle" }, n);
    }
    add(svg, "text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, "forward pass");
    add(svg, "text", { class: "tick", x: LEFT, y: HEIGHT - 4 }, trace.label);
    svg.onclick = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      onPick(Math.round(1 + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (values.length - 1)));
    };
    return cursorOf(svg, reading, values, px, py, base);
  }

  function scaleOf(values, levels, isLog) {
    const seen = values.filter((value) => value !== null && (!isLog || value > 0)).concat(levels);
    const most = Math.max(...seen, isLog ? LEAST : 1e-6);
    if (!isLog) {
      const high = most * 1.08;
      return { share: (value) => value / high, ticks: evenTicks(high) };
    }
    const low = Math.floor(Math.log10(Math.max(LEAST, Math.min(...seen, 1))));
    const high = Math.max(low + 1, Math.ceil(Math.log10(most)));
    const power = (value) => Math.max(low, value > 0 ? Math.log10(value) : low);
    return { share: (value) => (power(value) - low) / (high - low), ticks: powerTicks(low, high) };
  }

  function powerTicks(low, high) {
    const ticks = [];
    const stride = Math.max(1, Math.ceil((high - low) / 4));
    for (let n = low; n <= high; n += stride) ticks.push([10 ** n, n === 0 ? "1" : `1e${n}`]);
    return ticks;
  }

  function evenTicks(high) {
    const unit = 10 ** Math.floor(Math.log10(high / 4));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((size) => size >= high / 4);
    const ticks = [];
    for (let n = 0; n * step <= high; n++) ticks.push([n * step, String(Number((n * step).toPrecision(3)))]);
    return ticks;
  }

  // Refinement passes, each from half a pass before to half a pass behind.
  function shade(svg, px, phases, base) {
    for (const { index, 0: run } of phases.matchAll(/r+/g)) {
      const [first, last] = [Math.max(1, index + 0.5), Math.min(phases.length, index + run.length + 0.5)];
      add(svg, "rect", { class: "band s2", x: px(first), y: TOP, width: px(last) - px(first), height: base - TOP });
    }
  }

  function line(svg, values, px, py) {
    let points = [];
    values.concat(null).forEach((value, n) => {
      if (value !== null) {
        points.push(`${px(n + 1).toFixed(1)},${py(value).toFixed(1)}`);
        if (values.length < DOTS) add(svg, "circle", { class: "dot s1", cx: px(n + 1), cy: py(value), r: 2 });
      } else {
        if (points.length > 1) add(svg, "polyline", { class: "line s1", points: points.join(" ") });
        points = [];
      }
    });
  }

  function cursorOf(svg, reading, values, px, py, base) {
    const cursor = add(svg, "line", { class: "cursor", y1: TOP, y2: base });
    const dot = add(svg, "circle", { class: "cursor-dot", r: 4 });
    return (pass) => {
      const value = pass ? values[pass - 1] : null;
      const x = px(Math.max(1, pass));
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", pass ? "visible" : "hidden");
      dot.setAttribute("visibility", value === null ? "hidden" : "visible");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", py(value || 0));
      reading.textContent = value === null ? "–" : String(value);
    };
  }

  function add(svg, tag, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
    return made;
  }

  return { draw };
})();
