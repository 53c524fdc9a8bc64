// Does what it is told with E2B's SDK: one JSON object a line there, one back.
import { createInterface } from 'node:readline'
import { Sandbox } from 'e2b'

const brief = (info) => ({
  sandboxID: info.sandboxId,
  templateID: info.templateId,
  metadata: info.metadata,
  state: info.state,
  startedAt: info.startedAt.getTime() / 1000,
  endAt: info.endAt.getTime() / 1000,
  allowInternetAccess: info.allowInternetAccess,
  network: info.network,
})

const handle = (sandbox) => ({
  sandboxID: sandbox.sandboxId,
  domain: sandbox.sandboxDomain,
  trafficAccessToken: sandbox.trafficAccessToken,
  host: sandbox.getHost(3000),
})

const names = {
  allow_out: 'allowOut',
  deny_out: 'denyOut',
  allow_public_traffic: 'allowPublicTraffic',
  mask_request_host: 'maskRequestHost',
  allow_internet_access: 'allowInternetAccess',
  request_timeout: 'requestTimeoutMs',
  api_key: 'apiKey',
  api_url: 'apiUrl',
}
const camel = (object) =>
  object && Object.fromEntries(Object.entries(object).map(([key, value]) => [names[key] ?? key, value]))

// Selectors may be functions of a context, which the SDK resolves before it sends anything.
const selectors = (network) => {
  if (!network) return undefined
  const { by_function, ...rest } = camel(network)
  return by_function ? { ...rest, denyOut: ({ allTraffic }) => [allTraffic] } : rest
}

const orders = {
  create: async ({ template = 'base', network, timeout, ...options }) =>
    handle(
      await Sandbox.create(template, {
        ...camel(options),
        ...(timeout === undefined ? {} : { timeoutMs: timeout * 1000 }),
        ...(network ? { network: selectors(network) } : {}),
      })
    ),
  update: async ({ id, network, ...options }) =>
    (await Sandbox.updateNetwork(id, selectors(network), camel(options))) ?? null,
  info: async ({ id, ...options }) => brief(await Sandbox.getInfo(id, camel(options))),
  connect: async ({ id, timeout, ...options }) =>
    handle(
      await Sandbox.connect(id, { ...camel(options), ...(timeout ? { timeoutMs: timeout * 1000 } : {}) })
    ),
  running: async ({ id, ...options }) => await (await Sandbox.connect(id, camel(options))).isRunning(),
  download_url: async ({ id, path, seconds }) =>
    await (await Sandbox.connect(id)).downloadUrl(path, { useSignatureExpiration: seconds }),
  kill: async ({ id, ...options }) => await Sandbox.kill(id, camel(options)),
  timeout: async ({ id, seconds, ...options }) =>
    (await Sandbox.setTimeout(id, seconds * 1000, camel(options))) ?? null,
  list: async ({ metadata, limit, ...options }) => {
    const pages = Sandbox.list({ ...camel(options), limit, query: metadata ? { metadata } : undefined })
    const found = []
    while (pages.hasNext) found.push((await pages.nextItems()).map(brief))
    return found
  },
}

const classes = (error) => {
  const found = []
  for (let kind = error?.constructor; kind?.name; kind = Object.getPrototypeOf(kind)) found.push(kind.name)
  return found
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  let answer
  try {
    answer = { returned: (await orders[order.do](order.with)) ?? null }
  } catch (error) {
    answer = { thrown: { classes: classes(error), message: String(error?.message) } }
  }
  console.log(JSON.stringify(answer))
}
