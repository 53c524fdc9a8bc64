// A browser over TLS: HTTP/2, and a WebSocket over the same connection.
import puppeteer from 'puppeteer-core'

const [url] = process.argv.slice(1)
const browser = await puppeteer.launch({
  executablePath: '/usr/bin/chromium-headless-shell',
  args: ['--no-sandbox', '--disable-gpu', '--ignore-certificate-errors', '--disable-dev-shm-usage'],
})
try {
  const page = await browser.newPage()
  const got = await page.goto(url)
  const said = { status: got.status() }
  said.protocol = await page.evaluate(() => performance.getEntriesByType('navigation')[0].nextHopProtocol)
  said.echo = await page.evaluate(
    (url) =>
      new Promise((resolve, reject) => {
        const socket = new WebSocket(url)
        socket.onopen = () => socket.send('over and over')
        socket.onmessage = ({ data }) => resolve(data)
        socket.onerror = () => reject(new Error('no socket'))
      }),
    url.replace('https', 'wss')
  )
  console.log(JSON.stringify(said))
} finally {
  await browser.close()
}
