/* The curves and the film of a report. Its data is in the element #data: the runs, with curves and film, and charts. */

"use strict";

(() => {
  const { runs, charts } = JSON.parse(document.getElementById("data").textContent);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const HEIGHT = 240;

  // The film: every run shows its newest preview up to the step that the slider is at.

  const steps = [...new Set(runs.flatMap((run) => run.film.map(([step]) => step)))].sort((a, b) => a - b);
  const figures = [...document.querySelectorAll(".film")];
  const films = runs.map((run) => run.film).filter((film) => film.length);
  const slider = document.getElementById("scrubber");

  function show(place) {
    slider.value = place;
    slider.setAttribute("aria-valuetext", `step ${steps[place].toLocaleString("en")}`);
    films.forEach((film, n) => {
      const [step, address] = film.findLast(([step]) => step <= steps[place]) ?? film[0];
      const image = figures[n].querySelector("img");
      image.src = address;
      image.alt = `samples after step ${step.toLocaleString("en")}`;
      figures[n].querySelector("figcaption").textContent = `Step ${step.toLocaleString("en")}`;
    });
  }

  if (steps.length > 1) {
    const play = document.getElementById("play");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    };
    slider.max = steps.length - 1;
    slider.closest(".scrub").hidden = false;
    slider.addEventListener("input", () => {
      stop();
      show(Number(slider.value));
    });
    play.addEventListener("click", () => {
      if (timer !== null) {
        stop();
        return;
      }
      play.textContent = "Stop";
      show(Number(slider.value) === steps.length - 1 ? 0 : Number(slider.value));
      timer = setInterval(() => {
        const next = Number(slider.value) + 1;
        next < steps.length ? show(next) : stop();
      }, 300);
    });
    show(steps.length - 1);
  }

  // The curves. Those of several runs lie over each other, with one chart for each noise level.

  const drawn = [];
  const sync = uPlot.sync("steps");
  const number = (u, value) => (value == null ? "" : Number(value.toPrecision(4)).toString());
  const step = (u, value) => (value == null ? "" : value.toLocaleString("en"));

  function lines(chart, names) {
    // Each line is {label, colour, points: {step, y}}.
    return runs.flatMap((run, n) =>
      names.map((name, k) => ({
        label: runs.length > 1 ? run.name : chart.labels[chart.names.indexOf(name)],
        colour: runs.length > 1 || names.length === 1 ? `--c${n}` : `--n${k}`,
        step: run.curves[chart.key].step,
        y: run.curves[chart.key][name],
        least: chart.key === "held-out",
      })),
    ).filter((line) => line.y.some((value) => value !== null));
  }

  function least(u, line, n) {
    const place = line.y.reduce((best, y, i) => (y !== null && (best < 0 || y < line.y[best]) ? i : best), -1);
    const x = u.valToPos(line.step[place], "x", true);
    const y = u.valToPos(line.y[place], "y", true);
    const size = 5 * devicePixelRatio;
    u.ctx.save();
    u.ctx.lineWidth = 2 * devicePixelRatio;
    u.ctx.strokeStyle = colour(line.colour);
    u.ctx.fillStyle = colour("--surface");
    u.ctx.beginPath();
    u.ctx.arc(x, y, size, 0, 2 * Math.PI);
    u.ctx.fill();
    u.ctx.stroke();
    u.ctx.restore();
  }

  // On a logarithmic axis 1, 2 and 5 of each power of ten have a number.
  const few = (u, splits) => splits.map((y) => (y !== null && /^[125]/.test(y.toExponential(0)) ? y : null));

  // Where no cursor is, the legend has the newest values.
  function newest(u) {
    u.setLegend({ idx: u.data[0].length - 1 }, false);
  }

  function draw(chart, title, shown) {
    const box = document.createElement("div");
    const heading = document.createElement("h3");
    const note = document.createElement("p");
    box.className = "chart";
    heading.textContent = title;
    note.className = "quiet";
    note.textContent = chart.about;
    box.append(heading, note);
    document.getElementById("charts").append(box);
    const tables = shown.map((line) => [line.step, line.y]);
    const positive = shown.every((line) => line.y.every((y) => y === null || y > 0));
    const values = shown.flatMap((line) => line.y).filter((y) => y !== null);
    const wide = chart.log && positive && Math.max(...values) > 8 * Math.min(...values);
    const axis = {
      stroke: () => colour("--quiet"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { stroke: () => colour("--line"), width: 1 },
      font: "12px system-ui, sans-serif",
    };
    const plot = new uPlot({
      width: box.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false }, y: wide ? { distr: 3, range: (u, low, high) => [low / 1.1, high * 1.1] } : {} },
      axes: [
        { ...axis, values: (u, splits) => splits.map((x) => step(u, x)) },
        { ...axis, size: 58, ...(wide && { filter: few }), values: (u, splits) => splits.map((y) => number(u, y)) },
      ],
      series: [
        { label: "step", value: step },
        ...shown.map((line) => ({
          label: line.label,
          stroke: () => colour(line.colour),
          width: 1.75,
          spanGaps: true,
          points: { show: line.step.length < 2 },
          value: number,
        })),
      ],
      legend: { markers: { fill: (u, n) => colour(shown[n - 1].colour), width: 0 } },
      cursor: { sync: { key: sync.key, setSeries: false }, y: false },
      hooks: {
        draw: [(u) => shown.filter((line) => line.least).forEach((line) => least(u, line))],
        ready: [newest],
        setCursor: [(u) => u.cursor.idx === null && newest(u)],
      },
    }, uPlot.join(tables), box);
    plot.root.setAttribute("role", "img");
    plot.root.setAttribute("aria-label", title);
    drawn.push([plot, box]);
  }

  for (const chart of charts) {
    const groups = runs.length > 1 ? chart.names.map((name) => [name]) : [chart.names];
    for (const [place, names] of groups.entries()) {
      const shown = lines(chart, names);
      const label = chart.labels[chart.names.indexOf(names[0])];
      const about = place ? "" : chart.about;
      if (shown.length) draw({ ...chart, about }, groups.length > 1 ? `${chart.title}: ${label}` : chart.title, shown);
    }
  }

  new ResizeObserver(() => {
    for (const [plot, box] of drawn) {
      if (box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: HEIGHT });
    }
  }).observe(document.getElementById("charts"));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn.forEach(([plot]) => plot.redraw());
  });
})();
