"use strict";
// What a pointer over a chart reads: the nearest place's values, beside a line through it.
// Knows nothing of runs; places and texts are in the page's data.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent).charts;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = charts[svg.dataset.chart];
    if (!chart || !chart.places.length) continue;
    const [left, right, top, bottom] = chart.frame;
    const cursor = document.createElementNS(svg.namespaceURI, "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", bottom);
    cursor.setAttribute("visibility", "hidden");
    svg.append(cursor);

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      if (x < left - 8 || x > right + 8) return hide();
      const index = nearest(chart.places, x);
      cursor.setAttribute("x1", chart.places[index]);
      cursor.setAttribute("x2", chart.places[index]);
      cursor.setAttribute("visibility", "visible");
      show(chart, index, event);
    });
    svg.addEventListener("pointerleave", hide);

    function hide() {
      cursor.setAttribute("visibility", "hidden");
      tip.hidden = true;
    }
  }

  function show(chart, index, event) {
    const head = document.createElement("b");
    head.textContent = chart.names[index];
    tip.replaceChildren(head);
    for (const [name, texts] of chart.readings) {
      if (!texts[index]) continue;
      const line = document.createElement("div");
      const value = document.createElement("span");
      line.textContent = name;
      value.textContent = texts[index];
      line.append(value);
      tip.append(line);
    }
    tip.hidden = false;
    const room = window.innerWidth - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, room))}px`;
    tip.style.top = `${Math.max(4, event.clientY - tip.offsetHeight - 12)}px`;
  }

  function nearest(places, x) {
    let best = 0;
    for (let n = 1; n < places.length; n++) {
      if (Math.abs(places[n] - x) < Math.abs(places[best] - x)) best = n;
    }
    return best;
  }
})();
