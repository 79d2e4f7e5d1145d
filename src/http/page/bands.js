// Bands from sources on the left to destinations on the right.

import * as format from './format.js';
import * as svg from './svg.js';

const FONT_PX = 12;
/** An application gets at least this height: its label needs it. */
const NODE_PX_MIN = 17;
const NODE_GAP = 5;
const NODE_WIDTH = 8;
const HUES = 8;
/** The share of the width that the labels of one side may take. */
const LABEL_PART = 0.3;

/**
 * Draws `links` (src_app, dest_app, bytes), largest first, and a band for the bytes of all `others`, of so many `hours`, at
 * most `height` pixels high. `choose` is called with the ends (field, name) that are clicked: one for an application,
 * two for a band.
 */
export function draw(element, { links, others, hours }, height, choose) {
  const width = svg.widthOf(element);
  const { bands, sides } = lay(links, others, height);
  const bottom = Math.ceil(Math.max(...sides.map((nodes) => nodes.at(-1).bottom)));
  const labels = sides.map((nodes) => fit(element, nodes, width * LABEL_PART));
  const gutter = labels.map((texts) => Math.ceil(svg.textWidth(element, texts, FONT_PX)) + 8);
  const [left, right] = [gutter[0] + NODE_WIDTH, width - gutter[1] - NODE_WIDTH];
  const middle = (left + right) / 2;

  const paths = bands.map(({ from, to, thick, hue }, index) => {
    const curve = (a, b, y, z) => `${a} ${y}C${middle} ${y} ${middle} ${z} ${b} ${z}`;
    return svg.make('path', {
      class: `band ${hue}`,
      'data-index': index,
      d: `M${curve(left, right, from, to)}V${to + thick}L${curve(right, left, to + thick, from + thick)}Z`,
    });
  });
  const nodes = sides.flatMap((nodes, side) =>
    nodes.map((node, i) => {
      const before = bands.length + (side === 0 ? 0 : sides[0].length);
      const x = side === 0 ? left - NODE_WIDTH : right;
      return svg.make(
        'g',
        { class: 'node', 'data-index': before + i },
        svg.make('rect', { class: node.hue, x, y: node.top, width: NODE_WIDTH, height: Math.max(1, node.thick) }),
        svg.make('text', {
          class: 'node-label',
          x: side === 0 ? x - 6 : x + NODE_WIDTH + 6,
          y: node.top + node.thick / 2 + 4,
          'text-anchor': side === 0 ? 'end' : 'start',
          text: labels[side][i],
        }),
      );
    }),
  );
  svg.show(element, svg.picture(width, bottom, ...paths, ...nodes));

  const items = [
    ...bands.map((band) => ({ ends: [band.source, band.target], bytes: band.bytes, x: middle, y: (band.from + band.to) / 2 })),
    ...sides.flatMap((nodes, side) =>
      nodes.map((node) => ({ ends: [node], bytes: node.bytes, x: side === 0 ? left : right, y: node.top })),
    ),
  ];
  const model = {
    count: items.length,
    at: (event) => Number(document.elementFromPoint(event.clientX, event.clientY)?.closest('[data-index]')?.dataset.index ?? -1),
    text: (index) => {
      const { ends, bytes } = items[index];
      const side = ends.length > 1 ? '' : ends[0].field === 'src_app' ? 'from ' : 'to ';
      const heading = side + ends.map((end) => format.cut(titleOf(end), 60)).join(' → ');
      return [heading, `${format.amount(bytes, hours)} (${format.exactBytes(bytes)})`];
    },
    place: (index) => items[index],
    highlight: (index) => {
      for (const drawn of element.querySelectorAll('[data-index]')) {
        drawn.classList.toggle('on', index !== undefined && drawn.dataset.index === String(index));
      }
    },
    choose: (index) => choose(items[index].ends),
  };
  svg.explore(element, model, 0, false);
}

/** Places the applications on both sides from top to bottom, and the bands between them. */
function lay(links, others, height) {
  const sides = [new Map(), new Map()];
  const node = (side, field, name) => {
    if (!sides[side].has(name)) sides[side].set(name, { field, name, bytes: 0n, links: [] });
    return sides[side].get(name);
  };
  const ends = links.map(({ src_app, dest_app, bytes }) => ({ src: src_app, dest: dest_app, bytes }));
  if (others > 0n) ends.push({ src: null, dest: null, bytes: others });
  const bands = ends.map(({ src, dest, bytes }) => {
    const band = { source: node(0, 'src_app', src), target: node(1, 'dest_app', dest), bytes };
    for (const end of [band.source, band.target]) {
      end.bytes += bytes;
      end.links.push(band);
    }
    return band;
  });
  const lists = sides.map((side) => [...side.values()]);
  lists[0].forEach((node, i) => (node.hue = node.name === null ? 'hue-none' : `hue-${i % HUES}`));
  lists[1].forEach((node) => (node.hue = 'hue-none'));

  const scale = Math.min(...lists.map((nodes) => scaleOf(nodes, height)));
  const heights = lists.map((nodes) => nodes.reduce((sum, node) => sum + roomOf(node, scale) + NODE_GAP, 0));
  lists.forEach((nodes, side) => {
    // The shorter side is centred.
    let top = (Math.max(...heights) - heights[side]) / 2;
    for (const node of nodes) {
      const room = roomOf(node, scale);
      node.thick = Number(node.bytes) * scale;
      node.top = top + (room - node.thick) / 2;
      node.bottom = top + room;
      top += room + NODE_GAP;
    }
  });
  // Sorted by where they lead, so that few bands cross.
  for (const [side, field] of [[0, 'from'], [1, 'to']]) {
    for (const node of lists[side]) {
      const other = (band) => (side === 0 ? band.target : band.source);
      let y = node.top;
      for (const band of [...node.links].sort((a, b) => other(a).top - other(b).top)) {
        band[field] = y;
        band.thick = Number(band.bytes) * scale;
        y += band.thick;
      }
    }
  }
  for (const band of bands) band.hue = band.source.hue;
  return { bands, sides: lists };
}

function roomOf(node, scale) {
  return Math.max(Number(node.bytes) * scale, NODE_PX_MIN);
}

/** Pixels per byte so that `nodes` fill `height`; small ones get NODE_PX_MIN. */
function scaleOf(nodes, height) {
  let free = height - NODE_GAP * nodes.length;
  let bytes = nodes.reduce((sum, node) => sum + Number(node.bytes), 0);
  let scale = free / Math.max(bytes, 1);
  for (const node of [...nodes].sort((a, b) => Number(a.bytes) - Number(b.bytes))) {
    if (Number(node.bytes) * scale >= NODE_PX_MIN) break;
    free -= NODE_PX_MIN;
    bytes -= Number(node.bytes);
    scale = Math.max(0, free) / Math.max(bytes, 1);
  }
  return Math.max(0, scale);
}

function titleOf({ name }) {
  return name === null ? format.OTHERS : format.name(name);
}

/** Labels for `nodes`, at most `px` wide, no two alike. */
function fit(element, nodes, px) {
  const names = nodes.filter(({ name }) => name !== null).map(({ name }) => name);
  for (let chars = 40; ; chars -= 1) {
    const labels = format.labels(names, chars);
    const isWide = svg.textWidth(element, labels, FONT_PX) > px;
    if (!isWide || chars <= 10) return nodes.map(({ name }) => (name === null ? format.OTHERS : labels[names.indexOf(name)]));
  }
}
