// A person with a browser: refused, let in by an address, then by a cookie; clicks, and looks.
import puppeteer from 'puppeteer-core'

const [url, token, other, pictures] = process.argv.slice(1)
const browser = await puppeteer.launch({
  executablePath: '/usr/bin/chromium-headless-shell',
  args: ['--no-sandbox', '--disable-gpu', '--ignore-certificate-errors', '--disable-dev-shm-usage'],
})
try {
  const page = await browser.newPage()
  const said = {}
  const refused = await page.goto(url)
  said.refused = [refused.status(), await page.$eval('h1', (h1) => h1.textContent)]
  await page.screenshot({ path: `${pictures}/refused.png` })

  const welcomed = await page.goto(`${url}/?e2b-traffic-access-token=${token}`)
  await page.waitForSelector('#loaded')
  said.welcomed = [welcomed.status(), page.url() === `${url}/`, await page.$eval('#loaded', (it) => it.textContent)]
  const cookies = await page.cookies()
  said.cookies = cookies.map(({ name, domain, httpOnly, sameSite }) => [name, domain, httpOnly, sameSite])
  said.script = await page.evaluate(() => document.cookie)
  await page.screenshot({ path: `${pictures}/welcomed.png` })

  await Promise.all([page.waitForNavigation(), page.click('a')])
  said.clicked = await page.$eval('h1', (h1) => h1.textContent)

  // Another sandbox's page does its worst to cookies of all.
  await page.goto(other)
  await page.evaluate(() => {
    document.cookie = 'e2b-traffic-access-token=evil; domain=sandbox.localhost; path=/'
  })
  said.tossed = [200, 304].includes((await page.goto(`${url}/second.html`)).status())
  console.log(JSON.stringify(said))
} finally {
  await browser.close()
}
