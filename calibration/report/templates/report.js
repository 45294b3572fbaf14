"use strict";
// Figures name colours by role; the style sheet knows them, for light and for dark.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };

  function painted(value, palette) {
    if (typeof value === "string") {
      return value.startsWith("$") ? palette.getPropertyValue("--" + value.slice(1)).trim() || value : value;
    }
    if (Array.isArray(value)) return value.map((item) => painted(item, palette));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, palette)]));
  }

  function drawAll() {
    const palette = getComputedStyle(document.documentElement);
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + name);
      Plotly.react(place, painted(figure.traces, palette), painted(figure.layout, palette), config);
    }
  }

  drawAll();
  document.getElementById("undrawn").hidden = true;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
