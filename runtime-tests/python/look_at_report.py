# /// script
# requires-python = ">=3.10"
# dependencies = ["playwright>=1.50"]
# ///
"""Opens a page of `dijiang report` in headless Chromium, wide and narrow, light and dark, and says what is wrong with it.

    python look_at_report.py report.html pictures [--chromium PATH]

Writes a picture of the whole page for each view into `pictures`. Fails on an error in the console, on anything that is
fetched, on a page that is wider than its window, on a picture without anything in it, on text outside its picture, and on labels
of a chart that lie on each other.
"""

import argparse
import pathlib
import sys

from playwright.sync_api import sync_playwright

WIDTHS = [1280, 400]

LOOK = """() => {
  const wrong = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth) wrong.push(`it is ${root.scrollWidth} wide in a window of ${innerWidth}`);
  for (const img of document.images) {
    const box = img.getBoundingClientRect();
    if (!img.complete || !img.naturalWidth) wrong.push(`no picture: ${img.alt}`);
    if (box.width < 100) wrong.push(`${box.width} pixels wide: ${img.alt}`);
    const canvas = Object.assign(document.createElement('canvas'), {width: img.naturalWidth, height: img.naturalHeight});
    const context = canvas.getContext('2d');
    context.drawImage(img, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    if (data.every((x, i) => x === data[i % 4])) wrong.push(`one colour: ${img.alt}`);
  }
  const charts = document.querySelectorAll('svg');
  for (const svg of charts) {
    const name = svg.getAttribute('aria-label'), box = svg.getBoundingClientRect();
    // Each line is drawn in its colour once in the legend, and once as what it is.
    if (svg.querySelectorAll('polyline[stroke^="#"]').length < 2) wrong.push(`no line: ${name}`);
    const texts = [...svg.querySelectorAll('text')].map(t => ({text: t.textContent.trim(), box: t.getBoundingClientRect()}));
    for (const {text, box: b} of texts) {
      if (b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1)
        wrong.push(`${name}: "${text}" is outside`);
    }
    texts.forEach((a, i) => texts.slice(i + 1).forEach(b => {
      const x = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const y = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (x > 1 && y > 2) wrong.push(`${name}: "${a.text}" lies on "${b.text}"`);
    }));
  }
  return {wrong, images: document.images.length, charts: charts.length};
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    parser.add_argument("--chromium", help="the browser, where playwright has none of its own")
    args = parser.parse_args()
    args.pictures.mkdir(parents=True, exist_ok=True)
    address = args.page.resolve().as_uri()
    failed = False
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in ["light", "dark"]:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                told = []
                page.on("console", lambda message: told.append(f"console: {message.text}"))
                page.on("pageerror", lambda error: told.append(f"error: {error}"))
                page.on("request", lambda request: told.append(f"fetched: {request.url[:200]}")
                        if request.url != address and not request.url.startswith("data:") else None)
                page.goto(address)
                found = page.evaluate(LOOK)
                wrong = told + found["wrong"]
                picture = args.pictures / f"{width}-{scheme}.png"
                page.screenshot(path=picture, full_page=True)
                page.close()
                print(f"{width} {scheme}: {found['images']} images, {found['charts']} charts, {len(wrong)} faults, {picture}")
                for line in wrong:
                    print(f"  {line}")
                failed |= bool(wrong)
        browser.close()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
