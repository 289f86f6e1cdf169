"use strict";
// What ECharts is to draw for each kind of picture. A view returns its height, its options, how many points can be read
// one by one, at which series they are, and what is said of each.

function axisStyle(look) {
  return {
    axisLine: { lineStyle: { color: look.line } },
    axisTick: { lineStyle: { color: look.line } },
    axisLabel: { color: look.soft, hideOverlap: true },
    nameTextStyle: { color: look.soft },
    splitLine: { lineStyle: { color: look.line, opacity: 0.6 } },
  };
}

function common(look, narrow) {
  return {
    animation: false,
    textStyle: { color: look.ink, fontFamily: "system-ui, sans-serif" },
    aria: { enabled: true },
    legend: {
      type: "scroll", top: 0, left: 0, right: 0, textStyle: { color: look.ink, fontSize: narrow ? 11 : 12 },
      inactiveColor: look.line, pageTextStyle: { color: look.soft }, pageIconColor: look.soft, itemHeight: 10,
    },
  };
}

function zoom(axes, bottom) {
  return [
    { type: "inside", xAxisIndex: axes, zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, filterMode: "none" },
    { type: "slider", xAxisIndex: axes, bottom, height: 18, filterMode: "none", showDetail: false, brushSelect: false },
  ];
}

function tooltip(look, lines) {
  return {
    trigger: "axis", confine: true, backgroundColor: look.card, borderColor: look.line,
    textStyle: { color: look.ink, fontSize: 13 },
    formatter: (params) => lines(Array.isArray(params) ? params[0] : params).map(escaped).join("<br>"),
  };
}

// A band between two lines: the lower one unseen, and what lies between stacked on it.
function band(name, group, at, low, high, colour, opacity) {
  const unseen = { lineStyle: { opacity: 0 }, symbol: "none", silent: true, tooltip: { show: false } };
  const between = high.map((value, row) => (value === null || low[row] === null ? null : value - low[row]));
  return [
    { name, type: "line", stack: group, stackStrategy: "all", data: points(at, low), color: colour, ...unseen },
    {
      name, type: "line", stack: group, stackStrategy: "all", data: points(at, between), color: colour, ...unseen,
      areaStyle: { color: colour, opacity },
    },
  ];
}

// Shares of stretches of time as a strip: stacked steps that fill it to 1.
function strip(shares, edges, axis, group) {
  return shares.parts.map((part) => ({
    name: part.name, type: "line", step: "end", xAxisIndex: axis, yAxisIndex: axis, stack: group, symbol: "none",
    color: part.colour, lineStyle: { width: 0 }, areaStyle: { color: part.colour, opacity: 0.9 }, silent: true,
    data: points(edges, [...part.share, part.share[part.share.length - 1]]),
  }));
}

function spoken(shares, at_s) {
  const width = shares.edges_s[1] - shares.edges_s[0];
  const row = Math.min(Math.floor(at_s / width), shares.parts[0].share.length - 1);
  return shares.parts.filter((part) => part.share[row] > 0.0005).map((part) => `${part.name} ${percent(part.share[row])}`);
}

function powerView(picture, look, narrow, data) {
  const strips = [picture.doing, picture.held_back].filter((shares) => shares && shares.parts.length);
  const [scale, unit] = timeUnit(picture.duration_s);
  const inUnit = (seconds) => seconds.map((time) => time / scale);
  const titles = ["time spent", "held back by"].filter((_, row) => [picture.doing, picture.held_back][row]?.parts.length);
  const left = narrow ? 46 : 62;
  const main = 300;
  const grids = [{ left, right: 14, top: 54, height: main, outerBoundsMode: "none" }];
  strips.forEach((_, row) => grids.push({ left, right: 14, top: 54 + main + 46 + row * 52, height: 26, outerBoundsMode: "none" }));
  const style = axisStyle(look);
  const xAxes = grids.map((_, row) => ({
    type: "value", min: 0, max: picture.duration_s / scale, gridIndex: row, ...style, splitLine: { show: false },
    axisLabel: { ...style.axisLabel, show: row === 0, showMaxLabel: false }, axisTick: { show: row === 0 },
    axisPointer: { show: true, label: { show: false } },
    ...(row ? {} : { name: unit, nameLocation: "middle", nameGap: 24 }),
  }));
  const yAxes = [{ type: "value", name: "W", min: 0, ...style }].concat(strips.map((_, row) => ({
    type: "value", min: 0, max: 1, gridIndex: row + 1, show: true, name: titles[row], nameLocation: "end", nameGap: 5,
    nameTextStyle: { color: look.soft, align: "left" }, axisLabel: { show: false }, axisTick: { show: false },
    axisLine: { show: false }, splitLine: { show: false },
  })));
  const series = [];
  const several = picture.gpus.length > 1;
  picture.gpus.forEach((gpu, row) => {
    const colour = data.gpu_colours[row % data.gpu_colours.length];
    const { mean, low, high } = gpu.power_w;
    const at = inUnit(gpu.power_w.at);
    series.push({ name: gpu.name, type: "line", data: points(at, mean), symbol: "none", color: colour, lineStyle: { width: 1.5 } });
    if (low) series.push(...band(gpu.name, `band ${row}`, at, low, high, colour, several ? 0.15 : 0.3));
    if (gpu.limit_w) {
      const last = gpu.limit_w.mean[gpu.limit_w.mean.length - 1];
      series.push({
        name: several ? `${gpu.name} limit` : "limit in force", type: "line", step: "end", symbol: "none",
        data: [...points(inUnit(gpu.limit_w.at), gpu.limit_w.mean), [picture.duration_s / scale, last]],
        color: several ? colour : look.banner, lineStyle: { type: "dashed", width: 1.5 },
      });
    }
  });
  strips.forEach((shares, row) => series.push(...strip(shares, inUnit(shares.edges_s), row + 1, `strip ${row}`)));
  const at = picture.gpus[0].power_w.at;
  const say = (row) => {
    const lines = [`at ${Number((at[row] / scale).toPrecision(5))} ${unit}`];
    for (const gpu of picture.gpus) {
      const here = nearest(gpu.power_w.at, at[row]);
      const { mean, low, high } = gpu.power_w;
      const range = low && low[here] !== null ? ` (${quantity(low[here], "W")} to ${quantity(high[here], "W")})` : "";
      const until = gpu.limit_w ? gpu.limit_w.at.filter((place) => place <= at[row]).length : 0;
      const limit = gpu.limit_w ? `, limit ${quantity(gpu.limit_w.mean[Math.max(until - 1, 0)], "W")}` : "";
      lines.push(`${gpu.name}: ${quantity(mean[here], "W")}${range}${limit}`);
    }
    strips.forEach((shares, place) => {
      const parts = spoken(shares, at[row]);
      if (parts.length) lines.push(`${titles[place]}: ${parts.join(", ")}`);
    });
    return lines;
  };
  return {
    height: 54 + main + 46 + strips.length * 52 + 20, count: at.length, series: 0, say,
    option: {
      ...common(look, narrow), grid: grids, xAxis: xAxes, yAxis: yAxes, series,
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      dataZoom: zoom(grids.map((_, row) => row), 4),
      tooltip: tooltip(look, (param) => say(nearest(at, param.axisValue * scale))),
    },
  };
}

function stepsView(picture, look, narrow) {
  const { at, mean, low, high } = picture.energy_j;
  const less = mean.map((value, row) => (value === null || picture.error_bound_j[row] === null ? null : value - picture.error_bound_j[row]));
  const more = mean.map((value, row) => (value === null || picture.error_bound_j[row] === null ? null : value + picture.error_bound_j[row]));
  const style = axisStyle(look);
  const series = [];
  if (low) series.push(...band("least to most", "extremes", at, low, high, "#56b4e9", 0.3));
  series.push(...band("95 % error bound", "bound", at, less, more, "#e69f00", 0.45));
  const line = series.length;
  series.push({ name: low ? "mean" : "step", type: "line", symbol: "none", data: points(at, mean), color: "#0072b2", lineStyle: { width: 1.5 } });
  const say = (row) => [
    `step ${Math.floor(at[row]).toLocaleString("en")}${low ? " and those around it" : ""}`,
    `${low ? "mean " : ""}${quantity(mean[row], "J")} ± ${quantity(picture.error_bound_j[row], "J")}`,
    ...(low ? [`${quantity(low[row], "J")} to ${quantity(high[row], "J")}`] : []),
  ];
  return {
    height: 380, count: at.length, series: line, say,
    option: {
      ...common(look, narrow), grid: { left: narrow ? 50 : 66, right: 14, top: 50, bottom: 66 }, series,
      xAxis: { type: "value", min: 0, max: Math.max(picture.rows - 1, 1), name: "step", nameLocation: "middle", nameGap: 24, ...style, axisLabel: { ...style.axisLabel, showMaxLabel: false }, splitLine: { show: false } },
      yAxis: { type: "value", name: "per step", scale: true, ...style, axisLabel: { ...style.axisLabel, formatter: (value) => quantity(value, "J") } },
      dataZoom: zoom([0], 4),
      tooltip: tooltip(look, (param) => say(nearest(at, param.axisValue))),
    },
  };
}

function whereView(picture, look, narrow) {
  const gap = { name: "", energy_j: null };
  const bars = [...picture.work, ...(picture.waste.length ? [gap] : []), ...picture.waste];
  const style = axisStyle(look);
  const waste = picture.work.length;
  const text = (bar) => (bar.energy_j === null ? "" : `${quantity(bar.energy_j, "J")}  ${percent(bar.share)}`);
  const say = (row) => {
    const bar = bars[row];
    if (bar.energy_j === null) return ["of these, wasted:"];
    const bound = bar.error_bound_j === null ? "" : ` ± ${quantity(bar.error_bound_j, "J")}`;
    return [bar.name, `${quantity(bar.energy_j, "J")}${bound}`, `${percent(bar.share)} of the total`, ...(bar.note ? [bar.note] : [])];
  };
  return {
    height: 40 + bars.length * 30 + 30, count: bars.length, series: 0, say,
    option: {
      ...common(look, narrow), legend: { show: false }, grid: { left: narrow ? 104 : 140, right: narrow ? 112 : 120, top: 10, bottom: 30 },
      xAxis: { type: "value", min: 0, ...style, splitNumber: narrow ? 2 : 5, axisLabel: { ...style.axisLabel, formatter: (value) => quantity(value, "J") } },
      yAxis: {
        type: "category", inverse: true, data: bars.map((bar, row) => (row === waste && picture.waste.length ? "of these:" : bar.name)), ...style,
        axisTick: { show: false }, axisLabel: { color: look.ink, width: narrow ? 96 : 130, overflow: "truncate", interval: 0 },
      },
      series: [
        {
          type: "bar", barWidth: 18, data: bars.map((bar, row) => ({
            value: bar.energy_j, itemStyle: { color: bar.colour, ...(row > waste ? { opacity: 0.75 } : {}) },
            label: { show: true, position: "right", formatter: text(bar), color: look.ink, fontSize: 12 },
          })),
        },
        {
          type: "custom", silent: true, z: 5, tooltip: { show: false }, encode: { x: [1, 2], y: 0 },
          data: bars.flatMap((bar, row) => (bar.error_bound_j ? [[row, Math.max(bar.energy_j - bar.error_bound_j, 0), bar.energy_j + bar.error_bound_j]] : [])),
          renderItem: (_, api) => {
            const [x1, y] = api.coord([api.value(1), api.value(0)]);
            const [x2] = api.coord([api.value(2), api.value(0)]);
            const stroke = { stroke: look.ink, lineWidth: 1.2 };
            return {
              type: "group", children: [
                { type: "line", shape: { x1, y1: y, x2, y2: y }, style: stroke },
                ...[x1, x2].map((x) => ({ type: "line", shape: { x1: x, y1: y - 4, x2: x, y2: y + 4 }, style: stroke })),
              ],
            };
          },
        },
      ],
      tooltip: { ...tooltip(look, (param) => say(param.dataIndex)), axisPointer: { type: "shadow" } },
    },
  };
}

function ranksView(picture, look, narrow) {
  const bars = picture.bars;
  const style = axisStyle(look);
  const waits = [["peer wait", "peer_wait_j", "#b33f62"], ["data wait", "data_wait_j", "#e69f00"], ["other stall", "stall_j", "#d55e00"]];
  const rest = (bar) => (bar.energy_j === null ? null : Math.max(bar.energy_j - waits.reduce((sum, [, key]) => sum + (bar[key] ?? 0), 0), 0));
  const left = narrow ? 54 : 70;
  const stacked = (name, color, values) => ({ name, type: "bar", stack: "energy", color, data: values, barMaxWidth: 36 });
  const names = bars.map((bar) => (bar.straggles ? `▲ ${bar.rank}` : `${bar.rank}`));
  const backward = bars.some((bar) => bar.backward_s !== null);
  const say = (row) => {
    const bar = bars[row];
    return [
      `rank ${bar.rank} on ${bar.node}`, quantity(bar.energy_j, "J"),
      ...waits.filter(([, key]) => bar[key]).map(([name, key]) => `${name} ${quantity(bar[key], "J")}`),
      ...(bar.backward_s === null ? [] : [`backward ${quantity(bar.backward_s, "s")} ± ${quantity(bar.backward_spread_s, "s")}`]),
      ...(bar.straggles ? ["the others wait for it"] : []), ...(bar.counted ? [] : ["its GPU is counted elsewhere"]),
      ...(bar.complete ? [] : ["it never told its end"]),
    ];
  };
  const series = [
    stacked("at work", "#0072b2", bars.map(rest)),
    ...waits.filter(([, key]) => bars.some((bar) => bar[key])).map(([name, key, color]) => stacked(name, color, bars.map((bar) => bar[key]))),
  ];
  if (backward) {
    series.push({
      name: "backward phase", type: "bar", xAxisIndex: 1, yAxisIndex: 1, color: "#56b4e9", barMaxWidth: 36,
      data: bars.map((bar) => ({
        value: bar.backward_s, itemStyle: bar.straggles ? { color: look.banner } : {},
        label: { show: bar.straggles, position: "top", formatter: "the others wait", color: look.ink, backgroundColor: look.card, padding: 2, fontSize: 11 },
      })),
    });
  }
  const category = (row) => ({
    type: "category", data: names, gridIndex: row, ...style, name: row ? "rank" : "", nameLocation: "middle", nameGap: 24,
    axisLabel: { ...style.axisLabel, color: look.ink },
  });
  return {
    height: backward ? 470 : 300, count: bars.length, series: 0, say,
    option: {
      ...common(look, narrow),
      grid: [{ left, right: 14, top: 46, height: 190 }, ...(backward ? [{ left, right: 14, top: 300, height: 110 }] : [])],
      xAxis: backward ? [category(0), category(1)] : [category(0)],
      yAxis: [
        { type: "value", name: "energy", ...style, axisLabel: { ...style.axisLabel, formatter: (value) => quantity(value, "J") } },
        ...(backward ? [{ type: "value", name: "backward phase", nameTextStyle: { color: look.soft, align: "left" }, gridIndex: 1, ...style, axisLabel: { ...style.axisLabel, formatter: (value) => quantity(value, "s") }, splitNumber: 2 }] : []),
      ],
      series, axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: { ...tooltip(look, (param) => say(param.dataIndex)), axisPointer: { type: "shadow" } },
    },
  };
}

function searchView(picture, look, narrow) {
  const style = axisStyle(look);
  const of = (key) => (one) => [one.setting, one[key]];
  const lines = [["energy of a step", "energy", "#0072b2"], ["time of a step", "time", "#d55e00"]];
  const say = (row) => {
    const mean = picture.means[row];
    const what = mean.setting === picture.chosen ? ", chosen" : mean.setting === picture.found ? ", as found" : "";
    return [`${mean.setting} ${what}`.trim(), `energy ${change(mean.energy)}`, `time ${change(mean.time)}`];
  };
  const marks = [[picture.found, "found", look.soft]];
  if (picture.chosen !== null) marks.push([picture.chosen, picture.chosen === picture.found ? "kept" : "chosen", look.ink]);
  const series = lines.flatMap(([name, key, color], row) => [
    {
      name, type: "line", data: picture.means.map(of(key)), color, symbol: row ? "rect" : "circle", symbolSize: 8, lineStyle: { width: 2 },
      markLine: row ? undefined : {
        silent: true, symbol: "none", data: marks.map(([xAxis, text, colour]) => ({
          xAxis, lineStyle: { color: colour, type: text === "found" ? "dotted" : "solid" }, label: { formatter: text, color: colour },
        })),
      },
    },
    { name, type: "scatter", data: picture.windows.map(of(key)), color, symbol: row ? "rect" : "circle", symbolSize: 5, itemStyle: { opacity: 0.45 }, tooltip: { show: false } },
  ]);
  return {
    height: 360, count: picture.means.length, series: 0, say,
    option: {
      ...common(look, narrow), grid: { left: narrow ? 50 : 62, right: 24, top: 56, bottom: 48 }, series,
      xAxis: { type: picture.logarithmic ? "log" : "value", logBase: 2, scale: true, name: picture.setting, nameLocation: "middle", nameGap: 28, ...style, splitLine: { show: false } },
      yAxis: { type: "value", scale: true, ...style, axisLabel: { ...style.axisLabel, formatter: (value) => `${value > 0 ? "+" : ""}${Number((100 * value).toFixed(1))} %` } },
      tooltip: tooltip(look, (param) => say(nearest(picture.means.map((mean) => mean.setting), param.axisValue))),
    },
  };
}

const VIEWS = { power: powerView, steps: stepsView, where: whereView, ranks: ranksView, search: searchView };
