// Node's fetch: a page, what is refused, a stream up and one down.
const [url, token] = process.argv.slice(1)
const said = {}
said.without = (await fetch(url)).status
const headers = { 'e2b-traffic-access-token': token }
const page = await fetch(url, { headers })
said.page = [page.status, (await page.text()).startsWith('hello from')]
const parts = async function* () {
  for (let number = 0; number < 50; number++) yield new TextEncoder().encode(`part ${number};`.repeat(1000))
}
const echo = await fetch(`${url}/echo`, { method: 'POST', headers, body: parts(), duplex: 'half' })
const text = await echo.text()
said.echo = [echo.status, text.length, text.endsWith('part 49;')]
const down = await fetch(`${url}/down-chunked/3000000`, { headers })
let length = 0
for await (const chunk of down.body) length += chunk.length
said.down = length
said.many = (await Promise.all(Array.from({ length: 50 }, () => fetch(url, { headers }).then((got) => got.status)))).every(
  (status) => status === 200
)
console.log(JSON.stringify(said))
