"""Texts of a page that are too faint to read: below the contrast of WCAG 2, level AA, against what lies behind them."""

FAINT = r"""
() => {
  const parsed = text => { const p = text.match(/[\d.]+/g).map(Number); return [...p.slice(0, 3), p[3] ?? 1]; };
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3]));
  const light = color => color.slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, k) => sum + x * [0.2126, 0.7152, 0.0722][k], 0);
  const chain = element => { const all = []; for (let one = element; one; one = one.parentElement) all.push(one); return all; };
  const behind = element => {
    const grounds = chain(element).map(one => parsed(getComputedStyle(one).backgroundColor));
    const opaque = grounds.findIndex(one => one[3] === 1);
    const above = opaque < 0 ? grounds : grounds.slice(0, opaque + 1);
    return above.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const found = {}, texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
    const style = getComputedStyle(element), box = element.getClientRects()[0];
    if (!text || !box || !box.width || style.visibility === "hidden" || element.closest("script, style, noscript")) continue;
    const color = parsed(element instanceof SVGElement ? style.fill : style.color);
    color[3] *= chain(element).reduce((product, one) => product * getComputedStyle(one).opacity, 1);
    if (!color[3]) continue;
    const ground = behind(element), [dark, bright] = [light(ground), light(over(color, ground))].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < (large ? 3 : 4.5)) found[text.slice(0, 60)] = Math.round(100 * ratio) / 100;
  }
  return found;
}
"""


def faint(view) -> dict[str, float]:
    """Text -> its contrast, of those that have less than 4.5 : 1, or 3 : 1 where letters are large; {} is right.

    Args:
      view: a page of the browser as it is now.
    """
    return view.evaluate(FAINT)
