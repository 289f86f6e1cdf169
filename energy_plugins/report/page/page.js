"use strict";
// Draws each picture in its place, and again when the window or the colour scheme changes.

{
  const data = JSON.parse(document.getElementById("data").textContent);
  const redraws = data.pictures.map((picture) => {
    const box = document.getElementById(`chart-${picture.name}`);
    let chart = null;
    let view = null;
    const draw = () => {
      const narrow = box.clientWidth < 520;
      const look = theme();
      view = VIEWS[picture.view](picture, look, narrow, data);
      box.style.height = `${view.height}px`;
      chart ??= echarts.init(box, null, { renderer: "svg" });
      chart.resize();
      const graphic = data.simulated
        ? [{ type: "text", left: "center", top: Math.min(150, view.height / 2 - 24), silent: true, z: -1, style: { text: "SIMULATED", fontSize: narrow ? 26 : 40, fontWeight: 700, fill: look.banner, opacity: 0.16 } }]
        : [];
      chart.setOption({ ...view.option, graphic }, { notMerge: true });
    };
    draw();
    listen(box, () => ({ chart, view }));
    return draw;
  });
  const redraw = () => redraws.forEach((draw) => draw());
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(redraw);
  });
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
  performance.mark("drawn");
  document.documentElement.dataset.drawn = String(data.pictures.length);
}
