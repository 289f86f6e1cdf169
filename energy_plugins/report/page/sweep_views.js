"use strict";
// What ECharts is to draw for the pictures of a sweep, beside the views of views.js.

function valueAxis(look, logarithmic, more) {
  return { type: logarithmic ? "log" : "value", scale: true, ...axisStyle(look), ...more };
}

function inJoules(look) {
  return { ...axisStyle(look).axisLabel, formatter: (value) => quantity(value, "J") };
}

function frontView(picture, look, narrow) {
  const trials = picture.trials;
  const colour = (trial) => (trial.is_knee ? "#d55e00" : trial.on_front ? "#0072b2" : look.soft);
  const front = trials.filter((trial) => trial.on_front);
  const say = (row) => {
    const trial = trials[row];
    const what = trial.is_knee ? ", the knee of the front" : trial.on_front ? ", on the front" : "";
    return [`trial ${trial.number}${what}`, `${picture.metric} ${trial.value}`, quantity(trial.energy_j, "J"), trial.params];
  };
  return {
    height: 380, count: trials.length, series: 0, say,
    option: {
      ...common(look, narrow), grid: { left: narrow ? 54 : 70, right: 24, top: 50, bottom: 70 },
      legend: { ...common(look, narrow).legend, data: ["trial", "Pareto front"] },
      xAxis: valueAxis(look, picture.logarithmic_energy, {
        name: "energy of a trial", nameLocation: "middle", nameGap: 26, axisLabel: { ...inJoules(look), showMaxLabel: false }, splitLine: { show: false },
      }),
      yAxis: valueAxis(look, picture.logarithmic_value, { name: picture.metric, nameTextStyle: { color: look.soft, align: "left", width: 220, overflow: "truncate" } }),
      dataZoom: zoom([0], 4),
      series: [
        {
          name: "trial", type: "scatter", color: look.soft,
          data: trials.map((trial) => ({
            value: [trial.energy_j, trial.value], symbol: trial.is_knee ? "diamond" : "circle",
            symbolSize: trial.is_knee ? 16 : trial.on_front ? 10 : 7, itemStyle: { color: colour(trial), opacity: trial.on_front ? 1 : 0.6 },
            label: { show: trial.is_knee, position: "top", formatter: `knee: trial ${trial.number}`, color: look.ink, backgroundColor: look.card, padding: 2 },
          })),
        },
        {
          name: "Pareto front", type: "line", step: "end", silent: true, symbol: "none", color: "#0072b2", lineStyle: { width: 1.5 },
          data: front.map((trial) => [trial.energy_j, trial.value]), tooltip: { show: false }, z: 1,
        },
      ],
      tooltip: { ...tooltip(look, (param) => say(param.dataIndex)), trigger: "item" },
    },
  };
}

function parametersView(picture, look, narrow) {
  const columns = narrow ? 1 : Math.min(picture.panels.length, 3);
  const rows = Math.ceil(picture.panels.length / columns);
  const high = 230;
  const wide = 100 / columns;
  const left = narrow ? 60 : 66;
  const of = (row, panel = 0) => {
    const { name, categories, trials } = picture.panels[panel];
    const trial = trials[row];
    return [`trial ${trial.number}`, `${name} ${categories.length ? categories[trial.at] : trial.at}`, quantity(trial.energy_j, "J")];
  };
  const place = (panel) => ({ column: panel % columns, row: Math.floor(panel / columns) });
  const title = ({ name, share }, panel) => {
    const { column, row } = place(panel);
    return {
      text: share === null ? name : `${name}  ${percent(share)}`, left: `${column * wide}%`, top: row * high, padding: [4, 4, 4, 8],
      textStyle: { color: look.ink, fontSize: 13, fontWeight: 600, width: 260, overflow: "truncate" },
    };
  };
  const grid = (_, panel) => {
    const { column, row } = place(panel);
    return { left: `${column * wide + (100 * left) / Math.max(innerWidth, 320) / (narrow ? 1 : 1.2)}%`, width: `${wide - (narrow ? 24 : 9)}%`, top: row * high + 34, height: high - 76, outerBoundsMode: "none" };
  };
  const xAxis = ({ categories, logarithmic }, panel) => (categories.length
    ? { type: "category", data: categories, gridIndex: panel, ...axisStyle(look), axisLabel: { ...axisStyle(look).axisLabel, width: 80, overflow: "truncate" } }
    : valueAxis(look, logarithmic, { gridIndex: panel, splitLine: { show: false }, splitNumber: 3 }));
  return {
    height: rows * high, count: picture.panels[0].trials.length, series: 0, say: (row) => of(row),
    option: {
      ...common(look, narrow), legend: { show: false }, title: picture.panels.map(title), grid: picture.panels.map(grid),
      xAxis: picture.panels.map(xAxis),
      yAxis: picture.panels.map((_, panel) => valueAxis(look, picture.logarithmic_energy, { gridIndex: panel, splitNumber: 3, axisLabel: inJoules(look) })),
      series: picture.panels.map((panel, number) => ({
        type: "scatter", xAxisIndex: number, yAxisIndex: number, symbolSize: 7, color: "#0072b2", itemStyle: { opacity: 0.6 },
        data: panel.trials.map((trial) => [trial.at, trial.energy_j]),
      })),
      tooltip: { ...tooltip(look, (param) => of(param.dataIndex, param.seriesIndex)), trigger: "item" },
    },
  };
}

Object.assign(VIEWS, { front: frontView, parameters: parametersView });
