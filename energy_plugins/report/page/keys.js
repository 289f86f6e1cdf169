"use strict";
// A picture without a mouse: arrows read its points, plus and minus zoom, 0 shows all, Escape puts the tip away.

function listen(box, shown) {
  let point = -1;
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { chart, view } = shown();
    const range = chart.getOption().dataZoom?.[0];
    const far = event.shiftKey || event.key.startsWith("Page") ? Math.max(Math.round(view.count / 20), 1) : 1;
    const moves = {
      ArrowRight: () => (point = Math.min(point + far, view.count - 1)),
      ArrowLeft: () => (point = Math.max(point - far, 0)),
      PageDown: () => (point = Math.min(point + far, view.count - 1)),
      PageUp: () => (point = Math.max(point - far, 0)),
      Home: () => (point = 0),
      End: () => (point = view.count - 1),
    };
    const zooms = { "+": 0.5, "=": 0.5, "-": 2 };
    if (event.key in moves) {
      moves[event.key]();
      chart.dispatchAction({ type: "showTip", seriesIndex: view.series, dataIndex: point });
      document.getElementById("spoken").textContent = view.say(point).join("; ");
    } else if (event.key in zooms && range) {
      const middle = point < 0 ? (range.start + range.end) / 2 : (100 * point) / Math.max(view.count - 1, 1);
      const half = ((range.end - range.start) * zooms[event.key]) / 2;
      chart.dispatchAction({ type: "dataZoom", start: Math.max(middle - half, 0), end: Math.min(middle + half, 100) });
    } else if (event.key === "0" && range) {
      chart.dispatchAction({ type: "dataZoom", start: 0, end: 100 });
    } else if (event.key === "Escape") {
      chart.dispatchAction({ type: "hideTip" });
    } else {
      return;
    }
    event.preventDefault();
  });
  box.addEventListener("blur", () => shown().chart.dispatchAction({ type: "hideTip" }));
}
