// A run in a terminal as a picture that moves: an SVG in which each screen is seen for as long as it was.

export type Frame = { readonly atMs: number; readonly screen: string };

const [CHAR_WIDTH, LINE_HEIGHT, MARGIN] = [8.4, 18, 16];
/** The end is looked at before it begins again. */
const REST_MS = 4_000;

/** `frames` begin at 0; the last one is what a viewer shows that does not move pictures. */
export function svgOf(frames: readonly Frame[], { cols, rows }: { readonly cols: number; readonly rows: number }): string {
  const [width, height] = [Math.ceil(cols * CHAR_WIDTH + 2 * MARGIN), rows * LINE_HEIGHT + 2 * MARGIN];
  const endMs = (frames.at(-1)?.atMs ?? 0) + REST_MS;
  const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)}s`;
  const groups = frames.map(({ atMs, screen }, index) => {
    const next = frames[index + 1];
    const times = `begin="all.begin+${seconds(atMs)}" end="all.begin+${seconds(next?.atMs ?? endMs)}"`;
    // The last one is seen unless another is.
    const show =
      next === undefined
        ? `<set attributeName="visibility" to="hidden" begin="all.begin" end="all.begin+${seconds(atMs)}"/>`
        : `<set attributeName="visibility" to="visible" ${times}/>`;
    return `<g visibility="${next === undefined ? 'visible' : 'hidden'}">${show}${lines(screen)}</g>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img">`,
    '<title>hutch demo, recorded</title>',
    `<rect width="${width}" height="${height}" rx="8" fill="#10151c"><animate id="all" attributeName="rx" from="8" to="8" begin="0s;all.end" dur="${seconds(endMs)}"/></rect>`,
    '<g font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="14" fill="#d7dde5" xml:space="preserve">',
    ...groups,
    '</g></svg>',
    '',
  ].join('\n');
}

function lines(screen: string): string {
  return screen
    .trimEnd()
    .split('\n')
    .map((line, row) => (line === '' ? '' : `<text x="${MARGIN}" y="${MARGIN + (row + 0.8) * LINE_HEIGHT}">${escaped(line)}</text>`))
    .join('');
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
