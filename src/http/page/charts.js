// Charts by Plotly, which is large: it is fetched once everything else is under way.

import * as format from './format.js';

let plotly;

async function library() {
  // It is a script, not a module, and leaves itself in `Plotly`.
  plotly ??= import('./plotly.js').then(() => globalThis.Plotly);
  return plotly;
}

const dark = matchMedia('(prefers-color-scheme: dark)');
const narrow = matchMedia('(max-width: 640px)');
const CONFIG = { displayModeBar: false, doubleClick: false, responsive: true, showTips: false };

/** What is drawn where, so that it can be drawn again in other colours, or where there is more room. */
const drawn = new Map();
const listening = new WeakSet();
for (const query of [dark, narrow]) {
  query.addEventListener('change', () => drawn.forEach((make, element) => listening.has(element) && draw(element, make)));
}

/** Draws what `make` says; `listen` is called once there is something to listen to, if nobody listens yet. */
async function draw(element, make, listen) {
  drawn.set(element, make);
  let Plotly;
  try {
    Plotly = await library();
  } catch {
    plotly = undefined;
    element.textContent = 'The chart could not be loaded. The table below it has the same.';
    return;
  }
  // Another may have come meanwhile.
  if (drawn.get(element) !== make) return;
  const style = getComputedStyle(document.documentElement);
  const { data, layout } = make((name) => style.getPropertyValue(`--${name}`).trim(), narrow.matches);
  const text = style.getPropertyValue('--quiet').trim();
  const common = {
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    hoverlabel: {
      bgcolor: style.getPropertyValue('--raised').trim(),
      bordercolor: style.getPropertyValue('--line').trim(),
      font: { color: style.getPropertyValue('--text').trim(), size: 13 },
      align: 'left',
    },
    showlegend: false,
  };
  if (!listening.has(element)) element.replaceChildren();
  await Plotly.react(element, data, { ...common, ...layout }, CONFIG);
  if (!listening.has(element)) listen();
  listening.add(element);
}

/**
 * Bars of the hours in `slots` (hour, bytes_tx, bytes_rx), those between `from` and before `to` as chosen.
 * `choose` is told which hours, from and to, are clicked or dragged over.
 */
export function hours(element, slots, { from, to }, choose) {
  const make = (color, isNarrow) => {
    const shade = (name) => slots.map(({ hour }) => color(hour >= from && hour < to ? name : `${name}-faint`));
    const bar = (field, name, title) => ({
      type: 'bar',
      x: slots.map((_, i) => i),
      y: slots.map((slot) => Number(slot[field])),
      customdata: slots.map((slot) => format.bytes(slot[field])),
      text: slots.map(({ hour }) => format.hours({ from: hour, to: hour + 1 })),
      textposition: 'none',
      // A few hours are bars too, not blocks.
      width: Math.min(slots.length > 60 ? 0.9 : 0.75, slots.length / 12),
      hovertemplate: `${title} %{customdata}<extra></extra>`,
      marker: { color: shade(name), line: { width: 0 } },
      selected: { marker: { opacity: 1 } },
      unselected: { marker: { opacity: 1 } },
    });
    const top = Math.max(1, ...slots.map((slot) => Number(slot.bytes_tx + slot.bytes_rx)));
    const labels = ticks(slots, isNarrow ? 4 : 12);
    return {
      data: [bar('bytes_tx', 'sent', 'Sent'), bar('bytes_rx', 'received', 'Received')],
      layout: {
        barmode: 'stack',
        barcornerradius: slots.length > 60 ? 0 : 3,
        margin: { l: 56, r: 8, t: 8, b: 36 },
        hovermode: 'x unified',
        dragmode: matchMedia('(pointer: coarse)').matches ? false : 'select',
        selectdirection: 'h',
        selections: [],
        newselection: { line: { color: color('accent'), width: 1, dash: 'solid' } },
        activeselection: { fillcolor: color('accent'), opacity: 0.15 },
        xaxis: {
          range: [-0.5, slots.length - 0.5],
          tickmode: 'array',
          tickvals: labels.map(({ at }) => at),
          ticktext: labels.map(({ text }) => text),
          tickangle: 0,
          showgrid: false,
          zeroline: false,
          unifiedhovertitle: { text: '%{text}' },
          fixedrange: matchMedia('(pointer: coarse)').matches,
        },
        yaxis: {
          range: [0, top * 1.04],
          ...byteTicks(top),
          gridcolor: color('line'),
          zeroline: false,
          fixedrange: true,
        },
      },
    };
  };
  // Read at the time of the event: there are other slots by then.
  element.slots = slots;
  const between = (a, b) => {
    const last = element.slots.length - 1;
    const [first, end] = [a, b].map((at) => Math.min(Math.max(at, 0), last));
    choose({ from: element.slots[first].hour, to: element.slots[end].hour + 1 });
  };
  draw(element, make, () => {
    element.on('plotly_click', ({ points }) => points.length > 0 && between(points[0].x, points[0].x));
    element.on('plotly_selected', (event) => {
      if (!event?.range) return;
      const [a, b] = event.range.x.map(Math.round).sort((x, y) => x - y);
      between(a, b);
    });
  });
}

/**
 * Bands from sources on the left to destinations on the right, for `edges` (src_app, dest_app, bytes),
 * and one for the bytes of all `others`. `choose` is told the ends (field, name) that are clicked:
 * one of an application, two of a band.
 */
export function edges(element, edges, others, choose) {
  const make = (color, isNarrow) => {
    const shown = isNarrow ? edges.slice(0, 10) : edges;
    const left = edges.slice(shown.length).reduce((sum, edge) => sum + edge.bytes, others);
    const nodes = new Map();
    const node = (field, name, shade) => {
      const key = JSON.stringify([field, name]);
      if (!nodes.has(key)) nodes.set(key, { index: nodes.size, field, name, shade, bytes: 0n });
      return nodes.get(key);
    };
    let hues = 0;
    const links = shown.map(({ src_app, dest_app, bytes }) => {
      const before = nodes.size;
      const source = node('src_app', src_app, `hue-${hues % 8}`);
      if (nodes.size > before) hues += 1;
      return { source, target: node('dest_app', dest_app, 'hue-none'), bytes };
    });
    if (left > 0n) {
      const source = node('src_app', null, 'hue-none');
      links.push({ source, target: node('dest_app', null, 'hue-none'), bytes: left });
    }
    for (const { source, target, bytes } of links) {
      source.bytes += bytes;
      target.bytes += bytes;
    }
    const all = [...nodes.values()];
    element.ends = all;
    const charsMax = isNarrow ? 14 : 28;
    const title = ({ name }, chars) => (name === null ? 'all others' : format.label(name, chars));
    return {
      data: [
        {
          type: 'sankey',
          arrangement: 'fixed',
          orientation: 'h',
          node: {
            label: all.map((node) => title(node, charsMax)),
            color: all.map(({ shade }) => color(shade)),
            customdata: all.map((node) => `${title(node, 60)}: ${format.bytes(node.bytes)}`),
            hovertemplate: '%{customdata}<extra></extra>',
            line: { width: 0 },
            pad: 12,
            thickness: 10,
          },
          link: {
            source: links.map(({ source }) => source.index),
            target: links.map(({ target }) => target.index),
            value: links.map(({ bytes }) => Number(bytes)),
            color: links.map(({ source }) => `${color(source.shade)}55`),
            hovercolor: links.map(({ source }) => `${color(source.shade)}99`),
            customdata: links.map(
              ({ source, target, bytes }) => `${title(source, 40)} → ${title(target, 40)}: ${format.bytes(bytes)}`,
            ),
            hovertemplate: '%{customdata}<extra></extra>',
          },
          textfont: { color: color('text'), size: isNarrow ? 11 : 12 },
        },
      ],
      layout: { margin: { l: 4, r: 4, t: 8, b: 8 } },
    };
  };
  draw(element, make, () => {
    element.on('plotly_click', ({ points: [point] }) => {
      const ends = point.source === undefined ? [point] : [point.source, point.target];
      choose(ends.map(({ pointNumber }) => element.ends[pointNumber]));
    });
  });
}

/** Hours between two labels. */
const STEPS = [1, 2, 3, 6, 12, 24, 48, 120, 240];

/** Labels for at most `max` of the slots, at round hours. */
function ticks(slots, max) {
  const step = STEPS.find((step) => slots.length / step <= max) ?? STEPS.at(-1);
  // Where hours are left out, every so many of those that there are.
  const isWhole = slots.at(-1).hour - slots[0].hour < slots.length;
  const labelled = slots.map(({ hour }, at) => ({ hour, at })).filter(({ hour, at }) => (isWhole ? hour : at) % step === 0);
  return labelled.map(({ hour, at }, i) => ({ at, text: format.hourLabel(hour, step, labelled[i - 1]?.hour) }));
}

/** Three to six round numbers of bytes up to `top`. */
function byteTicks(top) {
  const power = 10 ** Math.floor(Math.log10(top));
  const step = [0.2, 0.5, 1, 2].map((factor) => factor * power).find((step) => top / step <= 6) ?? power;
  const tickvals = Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step);
  return { tickmode: 'array', tickvals, ticktext: tickvals.map((at) => (at === 0 ? '' : format.bytes(at).replace(/\.0+(?=\D)/, ''))) };
}
