// HTTP/2 by hand: an upload that is refused before it is read.
import { connect } from 'node:http2'

const session = connect(process.argv[1])
const request = session.request({ ':method': 'PUT', ':path': '/early' })
request.on('error', () => {})
let status
request.on('response', (headers) => (status = headers[':status']))
let text = ''
request.setEncoding('utf8').on('data', (part) => (text += part))
request.on('close', () => {
  console.log(status, text.trim())
  session.destroy()
})
request.end(Buffer.alloc(20 << 20))
