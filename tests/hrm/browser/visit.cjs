// Use the page as people do, in Chromium: node visit.cjs '{"url", "playwright", "chromium", "shots", "puzzle", ...}'.
// Prints what was seen as JSON; test_page.py has the expectations.
const asked = JSON.parse(process.argv[2]);
const { chromium } = require(asked.playwright);

const board = (page) => page.$$eval("[data-cell]", (cells) => cells.map((cell) => cell.textContent || "."));
const verdict = (page) => page.textContent("#verdict");
const ended = (page) => page.waitForFunction(() => /Solved|Not solved|could not/.test(document.querySelector("#verdict").textContent), null, { timeout: 240000 });
const classes = (page, name) => page.$$eval("[data-cell]", (cells, name) => cells.flatMap((cell, index) => (cell.classList.contains(name) ? [index] : [])), name);

// The lowest contrast of text on its background, over the elements that show text.
const contrast = (page) => page.evaluate(() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const colour = (text) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255).map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)).reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  let lowest = [21, ""];
  for (const element of document.querySelectorAll("h1, label, button:not(:disabled), td, th, p, .cell")) {
    if (!element.textContent.trim() || !element.checkVisibility() || element.classList.contains("path")) continue;
    let behind = element, back;
    while ((back = colour(getComputedStyle(behind).backgroundColor))[3] < 255 && behind.parentElement) behind = behind.parentElement;
    const [low, high] = [light(back), light(colour(getComputedStyle(element).color))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, element.className || element.tagName];
  }
  return lowest;
});

async function open(browser, seen, options) {
  const page = await browser.newPage(options);
  page.on("request", (request) => seen.hosts.add(new URL(request.url()).host));
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("console", (message) => { if (message.type() === "error") seen.errors.push(message.text()); });
  await page.goto(asked.url);
  await page.waitForSelector("[data-cell]", { timeout: 120000 });
  return page;
}

// Only the keyboard: to the board by Tab, every clue by arrows and digits, then Enter.
async function withKeys(page) {
  const seen = {};
  await page.click("#clear"); // (the only click: a blank board)
  await page.evaluate(() => document.activeElement.blur());
  for (let press = 0; press < 40 && !(await page.evaluate(() => document.activeElement.matches("[data-cell]"))); press++) await page.keyboard.press("Tab");
  for (const letter of asked.puzzle) {
    if (letter !== ".") await page.keyboard.press(letter);
    await page.keyboard.press("ArrowRight");
  }
  seen.typed = (await board(page)).join("");
  await page.keyboard.press("Enter");
  await ended(page);
  seen.verdict = await verdict(page);
  seen.answer = (await board(page)).join("");
  seen.segments = await page.$$eval("#frames tr", (rows) => rows.length - 1);
  seen.changed = (await classes(page, "fresh")).length;
  await page.keyboard.press("Home");
  seen.atHome = (await board(page)).join("");
  await page.keyboard.press(".");
  seen.first = (await board(page)).join("");
  await page.keyboard.press(",");
  seen.back = (await board(page)).join("");
  await page.keyboard.press("End");
  seen.atEnd = (await board(page)).join("");
  return seen;
}

async function withMouse(page) {
  const seen = {};
  await page.click("#paste");
  await page.fill("#text", "12");
  await page.click("#take");
  seen.tooShort = await page.textContent("#problem");
  await page.fill("#text", asked.impossible);
  await page.click("#take");
  seen.impossible = await verdict(page);
  seen.wrong = await classes(page, "wrong");
  seen.disabled = await page.isDisabled("#solve");
  await page.screenshot({ path: `${asked.shots}/impossible.png`, fullPage: true });
  await page.click("#example");
  await page.selectOption("#attempts", "4");
  await page.selectOption("#halt", "fixed");
  await page.fill("#limit", "3");
  await page.click("#solve");
  await ended(page);
  seen.attempts = await verdict(page);
  seen.segments = await page.$$eval("#frames tr", (rows) => rows.length - 1);
  seen.choices = await page.$$eval("#choices button", (buttons) => buttons.map((button) => button.className));
  await page.screenshot({ path: `${asked.shots}/attempts.png`, fullPage: true });
  await page.click("#frames tr:nth-child(2)");
  seen.current = await page.$$eval("#frames tr", (rows) => rows.findIndex((row) => row.classList.contains("current")));
  return seen;
}

(async () => {
  const browser = await chromium.launch({ executablePath: asked.chromium, args: ["--no-sandbox"] });
  const seen = { hosts: new Set(), errors: [] };
  const desktop = await open(browser, seen, { viewport: { width: 1200, height: 850 }, colorScheme: "light" });
  seen.title = await desktop.textContent("#model option:checked");
  seen.keys = await withKeys(desktop);
  await desktop.screenshot({ path: `${asked.shots}/desktop-light.png`, fullPage: true });
  seen.light = await contrast(desktop);
  seen.mouse = await withMouse(desktop);
  await desktop.close();
  const phone = await open(browser, seen, { viewport: { width: 360, height: 740 }, colorScheme: "dark", hasTouch: true });
  await phone.tap("#solve");
  await ended(phone);
  await phone.screenshot({ path: `${asked.shots}/phone-dark.png`, fullPage: true });
  seen.dark = await contrast(phone);
  seen.phone = await phone.evaluate(() => ({
    width: document.documentElement.scrollWidth,
    cells: [...document.querySelectorAll("[data-cell]")].map((cell) => cell.getBoundingClientRect()).map(({ width, height, bottom }) => [width, height, bottom]),
    bottom: document.querySelector("#board").getBoundingClientRect().bottom,
    verdict: document.querySelector("#verdict").textContent,
  }));
  await browser.close();
  console.log(JSON.stringify({ ...seen, hosts: [...seen.hosts] }));
})().catch((error) => { console.error(error); process.exit(1); });
